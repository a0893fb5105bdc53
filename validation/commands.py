"""``moesim validate`` and ``moesim explain``: prediction against execution."""

import typer

from moesim.backends.needing_torch import needing_torch
from moesim.backends.options import ExpertFormat, Layers, PinnedPool, Weights
from moesim.simulator.commands.options import Dark
from moesim.validation.options import (
    Arrivals,
    Backend,
    CellName,
    Check,
    Chunk,
    Commit,
    Evidence,
    Hardware,
    Intervene,
    JsonOut,
    MaxBatch,
    Minutes,
    ModelName,
    More,
    Output,
    Plot,
    ProfileTrace,
    Prompt,
    Repeats,
    Routing,
    Runtime,
    Seed,
    Slots,
    System,
    Timeline,
    Tokens,
    Trace,
    Vram,
    Warm,
)

OUT_OF_TOLERANCE = 1


def validate(
    more: More = None,
    backend: Backend = "cpu",
    check: Check = None,
    model: ModelName = None,
    weights: Weights = "checkpoint",
    layers: Layers = None,
    expert_format: ExpertFormat = None,
    pinned_pool: PinnedPool = None,
    trace: Trace = None,
    profile_trace: ProfileTrace = None,
    system: System = None,
    slots: Slots = None,
    vram: Vram = None,
    hardware: Hardware = None,
    runtime: Runtime = None,
    routing: Routing = "forced",
    max_batch: MaxBatch = None,
    chunk: Chunk = None,
    arrivals: Arrivals = None,
    seed: Seed = 0,
    repeats: Repeats = 5,
    warm: Warm = None,
    tokens: Tokens = None,
    prompt: Prompt = None,
    intervene: Intervene = None,
    minutes: Minutes = None,
    output: Output = None,
    commit: Commit = None,
    json_out: JsonOut = None,
    plot: Plot = None,
    dark: Dark = False,
) -> None:
    """Predict, execute, compare: how far the simulator is off on a machine, with its noise floor.

    moesim validate --backend cpu

    moesim validate --backend cuda --model olmoe --weights random --trace TRACE --hardware FILE
    --runtime FILE -o DIR

    moesim validate --backend cpu --max-batch 4 --arrivals poisson:rate=4,requests=8

    moesim validate --check validation/results/cpu-reference

    moesim validate --check DIR DIR
    """
    from moesim.backends.sources import Source
    from moesim.validation.settings import settings_of
    from moesim.validation.wishes import Wishes, check_wishes

    wishes = Wishes(
        backend=backend,
        source=None
        if model is None
        else Source(model, weights, layers, pinned_pool, expert_format),
        trace=trace,
        system=system,
        slots=slots,
        vram=vram,
        hardware=hardware,
        runtime=runtime,
        routing=routing,
        warm=warm,
        tokens=tokens,
        repeats=repeats,
        settings=settings_of(
            prompt=prompt,
            max_batch=max_batch,
            chunk=chunk,
            arrivals=arrivals,
            seed=seed,
            intervene=intervene,
        ),
        minutes=minutes,
        output=output,
        commit=commit,
        profile_trace=profile_trace,
    )
    if plot is not None:
        from moesim.simulator.results.plots import check_suffix

        check_suffix(plot)
    if check is not None:
        from moesim.validation.checking import judge_again

        is_right = judge_again([check, *(more or ())], plot, json_out, dark=dark)
        raise typer.Exit(0 if is_right else OUT_OF_TOLERANCE)
    if more:
        from moesim.simulator.errors import InputError

        raise InputError(f"{more[0]}: folders are judged again with --check; nothing else is taken")
    check_wishes(wishes)
    with needing_torch("validating"):
        from moesim.validation.session import run_session
    session = run_session(wishes)
    from moesim.validation.checking import report
    from moesim.validation.tables import print_cells, print_checks

    if session.checks:
        print_checks(session.checks)
    print_cells(session.found)
    report(session.found, plot, json_out, dark=dark)
    if not session.passed:
        raise typer.Exit(OUT_OF_TOLERANCE)


def explain(
    folder: Evidence, cell: CellName = None, timeline: Timeline = None, dark: Dark = False
) -> None:
    """Say where prediction and truth part: first difference first, by cause.

    moesim explain validation/results/cpu-reference
    """
    from moesim.simulator.errors import InputError, UnknownNameError
    from moesim.validation.evidence_files import read_folder
    from moesim.validation.explain import explain as explain_cell
    from moesim.validation.explain import order
    from moesim.validation.judge import check_judgements

    found = read_folder(folder)
    check_judgements(found)
    chosen = [one for one in found if cell is None or one.prediction.cell.id.startswith(cell)]
    if not chosen:
        raise UnknownNameError("cell", str(cell), [one.prediction.cell.id for one in found])
    if timeline is not None:
        if len(chosen) != 1:
            names = ", ".join(one.prediction.cell.id for one in chosen)
            raise InputError(f"--timeline draws one cell; choose it with --cell: {names}")
        from moesim.validation.plots import plot_timeline

        plot_timeline(chosen[0], timeline, dark=dark)
    for one in order(chosen):
        typer.echo(f"{one.prediction.cell.id}")
        for line in explain_cell(one):
            typer.echo(line)
        typer.echo()
