"""``moesim calibrate``: measure this machine and write its profile."""

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.backends.needing_torch import needing_torch
from moesim.simulator.commands.options import (
    Cache,
    ExpertBudget,
    Model,
    Prefetch,
    Schedule,
    Slots,
    SystemName,
    WeightsFormat,
)

_MINUTES = {"cuda": 3.0, "cpu": 0.3}
_SECONDS = 60
_EAGER = "hf-eager"

Backend = Annotated[
    str | None,
    typer.Option("--backend", help="cuda (default), or cpu: memory copies stand for the link's."),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="hf-eager: transformers' own modules, without graphs. Default: the backend's own "
        "runtime.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="The hardware profile to write, a .yaml.")
]
RuntimeOutput = Annotated[
    Path | None,
    typer.Option("--runtime-output", help="Write what our software adds too, for --runtime."),
]
Minutes = Annotated[
    float | None,
    typer.Option(min=0.0, help="How long to take samples. Default 3 on cuda, 0.3 on cpu."),
]
JsonOut = Annotated[
    Path | None, typer.Option("--json", help="Write every median, spread and held-out point.")
]
_LOG = "From an engine's own log instead of this machine"
FromLog = Annotated[
    Path | None,
    typer.Option(
        help="CSV with a row for each decode step: time, and bytes read if known.",
        rich_help_panel=_LOG,
    ),
]
OfTrace = Annotated[
    Path | None, typer.Option("--trace", help="What it routed.", rich_help_panel=_LOG)
]
LogColumns = Annotated[
    str | None,
    typer.Option(
        help="time=COLUMN,bytes=COLUMN. Default wall_ms and the like, read_bytes.",
        rich_help_panel=_LOG,
    ),
]


def calibrate(
    output: Output,
    backend: Backend = None,
    mode: Mode = None,
    runtime_output: RuntimeOutput = None,
    minutes: Minutes = None,
    json_out: JsonOut = None,
    from_log: FromLog = None,
    trace: OfTrace = None,
    log_columns: LogColumns = None,
    system: SystemName = None,
    cache: Cache = None,
    prefetch: Prefetch = None,
    schedule: Schedule = None,
    expert_budget: ExpertBudget = None,
    slots: Slots = None,
    model: Model = None,
    weights_format: WeightsFormat = None,
) -> None:
    """Measure this machine in minutes: a profile whose every figure carries evidence and spread.

    moesim calibrate --backend cuda -o my-gpu.yaml --runtime-output my-runtime.yaml

    Each figure is the median of samples spread over the whole run. Points that no fit has seen are
    measured too; the table says how well the fits meet them.

    moesim calibrate --from-log TOKENS.csv --trace TRACE --cache lru --slots 25% -o theirs.yaml

    Fits the first half of the log of somebody's own engine, which ran those policies in that room,
    and states the error on the second half.
    """
    from moesim.simulator.errors import InputError  # noqa: PLC0415  light at import

    if (from_log is None) != (trace is None):
        raise InputError("give --from-log and --trace together: the times, and what was routed")
    if from_log is None:
        _refuse(
            "tells what an engine's log was made with; give --from-log and --trace too",
            log_columns=log_columns,
            system=system,
            cache=cache,
            prefetch=prefetch,
            schedule=schedule,
            expert_budget=expert_budget,
            slots=slots,
            model=model,
            format=weights_format,
        )
    else:
        _refuse(
            "is of measuring this machine; leave it out with --from-log",
            backend=backend,
            mode=mode,
            minutes=minutes,
        )
    backend = backend or "cuda"
    if backend not in _MINUTES:
        raise InputError(f"--backend {backend}: expected cuda or cpu")
    if mode not in (None, _EAGER):
        raise InputError(f"--mode {mode}: expected {_EAGER}, or nothing for the backend's own")
    for option, path in (("--output", output), ("--runtime-output", runtime_output)):
        _check_path(option, path)
    if json_out is not None and not json_out.parent.is_dir():
        raise InputError(f"--json {json_out}: give a file in an existing folder")
    if from_log is not None and trace is not None:
        from moesim.simulator.commands import from_log as logs  # noqa: PLC0415  light at import

        logs.calibrate_from_log(
            from_log,
            trace,
            logs.Engine(
                system, cache, prefetch, schedule, expert_budget, slots, model, weights_format
            ),
            columns=log_columns,
            output=output,
            runtime_output=runtime_output,
            json_out=json_out,
        )
        return
    with needing_torch("calibrating"):
        from moesim.backends.drivers.cuda.machine import gpu  # noqa: PLC0415  torch when it runs
    if backend == "cuda":
        gpu()
    seconds = _SECONDS * (_MINUTES[backend] if minutes is None else minutes)
    found = _measure(backend, mode, output.stem, seconds, _command(backend, mode, output, minutes))
    _write(found, output, runtime_output, json_out)


def _refuse(why: str, **options: object) -> None:
    """Refuse an option that the chosen way of calibrating does not read."""
    from moesim.simulator.errors import InputError  # noqa: PLC0415  light at import

    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} {value}: {why}")


def _check_path(option: str, path: Path | None) -> None:
    """Refuse a path before minutes are spent on what is to be written there."""
    from moesim.hardware_profiles.figures import NamedFile  # noqa: PLC0415  light at import
    from moesim.simulator.errors import InputError  # noqa: PLC0415  light at import

    if path is None:
        return
    if path.suffix != ".yaml" or not path.parent.is_dir():
        raise InputError(f"{option} {path}: give a .yaml file in an existing folder")
    try:
        NamedFile(schema="1", name=path.stem)  # type: ignore[arg-type]  # as YAML has it
    except ValueError as error:
        raise InputError(
            f"{option} {path}: the file's name is the profile's; "
            "use lower case letters, digits, '.', '_' and '-'"
        ) from error


def _command(backend: str, mode: str | None, output: Path, minutes: float | None) -> str:
    given = "" if minutes is None else f" --minutes {minutes:g}"
    how = "" if mode is None else f" --mode {mode}"
    return f"moesim calibrate --backend {backend}{how} -o {output.name}{given}"


def _measure(backend: str, mode: str | None, name: str, seconds: float, command: str) -> Any:  # noqa: ANN401  Calibration, which imports torch
    from moesim.backends.calibration.run import calibrate as measure  # noqa: PLC0415  torch
    from moesim.backends.calibration.run import make_bench  # noqa: PLC0415  torch
    from moesim.simulator.progress import progress  # noqa: PLC0415  rich

    with progress("calibrating", 100, "%") as advance:
        done = 0

        def on_round(share: float) -> None:
            nonlocal done
            percent = int(100 * share)
            advance(percent - done)
            done = percent

        return measure(
            make_bench(backend),
            name=name,
            seconds=seconds,
            command=command,
            mode=mode,
            on_round=on_round,
        )


def _write(
    found: Any,  # noqa: ANN401  Calibration, which imports torch
    output: Path,
    runtime_output: Path | None,
    json_out: Path | None,
) -> None:
    from moesim.backends.calibration.files import (  # noqa: PLC0415  light at import
        print_checks,
        write_json,
        write_machine,
        write_runtime,
    )

    write_machine(found.machine, output)
    typer.echo(f"wrote {output}; use it as --hardware {output}", err=True)
    if runtime_output is not None:
        write_runtime(found.runtime, runtime_output)
        typer.echo(f"wrote {runtime_output}; use it as --runtime {runtime_output}", err=True)
    if json_out is not None:
        write_json(found.record(), json_out)
    print_checks(found.checks)
