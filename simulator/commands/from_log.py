"""``moesim calibrate --from-log``: a machine and a runtime fitted to an engine's own times."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from moesim.simulator.fitting.engine_log import EngineLog
    from moesim.simulator.fitting.log_fit import LogFit
    from moesim.simulator.run_spec import RunSpec


@dataclass(frozen=True, slots=True)
class Engine:
    """What a user says of the engine that wrote a log; options of ``moesim simulate``."""

    system: str | None = None
    cache: str | None = None
    prefetch: str | None = None
    schedule: str | None = None
    expert_budget: str | None = None
    slots: str | None = None
    model: str | None = None
    weights_format: str | None = None


def run_of(trace: Path, engine: Engine) -> "RunSpec":
    """Return the run that a log is of; its machine and runtime are what will be fitted."""
    from moesim.simulator.commands.policies import choose_policies
    from moesim.simulator.memory import MemorySpec
    from moesim.simulator.run_spec import RunSpec
    from moesim.traces import load

    chosen = choose_policies(
        engine.system, None, engine.cache, engine.prefetch, engine.schedule, []
    )
    return RunSpec(
        trace=load(trace),
        trace_name=trace.name,
        hardware="",
        policies=chosen.policies,
        system=chosen.system,
        memory=MemorySpec(None, engine.expert_budget, engine.slots),
        model=engine.model,
        weights_format=engine.weights_format,
    )


def calibrate_from_log(
    log: Path,
    trace: Path,
    engine: Engine,
    *,
    columns: str | None,
    output: Path,
    runtime_output: Path | None,
    json_out: Path | None,
) -> None:
    """Fit the first half of a log, predict the second, write both profiles, print the errors."""
    from moesim.hardware_profiles.writing import write_machine, write_runtime
    from moesim.simulator.fitting.engine_log import parse_columns, read_log
    from moesim.simulator.fitting.log_fit import fit_log
    from moesim.simulator.results.rows import write_text

    read = read_log(log, parse_columns(columns) if columns else None)
    found = fit_log(run_of(trace, engine), read)
    runtime = runtime_output or output.with_name(f"{output.stem}-runtime.yaml")
    write_machine(found.machine, output)
    write_runtime(found.runtime, runtime)
    if json_out is not None:
        import json

        write_text(json_out, json.dumps(record(read, found), indent=1) + "\n")
    typer.echo(f"wrote {output}; use it as --hardware {output} --runtime {runtime}", err=True)
    _print(read, found)


def record(log: "EngineLog", found: "LogFit") -> dict[str, Any]:
    """Return a fit as JSON has it: constants, errors on both halves, every token."""
    return {
        "log": {"name": log.name, "sha256": log.sha256, "columns": dict(log.columns)},
        "constants": rounded(asdict(found.constants)),
        "fitted_half": rounded(asdict(found.seen)),
        "unseen_half": rounded(asdict(found.unseen)),
        "bytes_error": found.bytes_error,
        "bytes_correlation": found.bytes_correlation,
        "fitted_rows": [int(row) for row in found.is_fit_N.nonzero()[0]],
        "predicted_ms": [round(time_ns / 1e6, 3) for time_ns in found.predicted_ns_N.tolist()],
        "measured_ms": [round(time_ns / 1e6, 3) for time_ns in log.time_ns_N.tolist()],
    }


def rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return figures to six significant digits, so that a record reads well.

    >>> rounded({"mean": 0.123456789})
    {'mean': 0.123457}
    """
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in figures.items()
    }


def _print(log: "EngineLog", found: "LogFit") -> None:
    from moesim.simulator.tables import console, print_table

    constants = found.constants
    rows = [
        (name, *(_shown(getattr(half, key), form) for half in (found.seen, found.unseen)))
        for name, key, form in (
            ("tokens", "rows", "d"),
            ("mean TPOT", "mean", "+.1%"),
            ("p50 TPOT", "p50", "+.1%"),
            ("p99 TPOT, as replayed", "p99", "+.1%"),
            ("p99 TPOT, spread as the fitted half", "p99_with_spread", "+.1%"),
            ("correlation, token by token", "correlation", ".3f"),
            ("tokens that stumbled", "disturbed", ".1%"),
            ("mean TPOT of the others", "undisturbed_mean", "+.1%"),
            ("correlation of the others", "undisturbed_correlation", ".3f"),
        )
    ]
    print_table(f"error on {log.name}", ("", "fitted half", "unseen half"), rows)
    out = console()
    out.print(
        f"{constants.fixed_ns / 1e6:.2f} ms a token, {1 / constants.byte_ns:.3f} GB/s for what is "
        f"missed, {constants.disturbance_ns / 1e6:.2f} ms a token for those that stumbled"
    )
    if found.bytes_error is not None:
        out.print(
            f"bytes read: the replay's are {found.bytes_error:+.2%} off the log's, "
            f"correlation {found.bytes_correlation:.6f}"
        )


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
