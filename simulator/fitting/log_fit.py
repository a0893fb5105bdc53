"""Fits a machine and a runtime to the times that somebody's own engine logged.

One half of the log's rows is fitted, the other is predicted, by a replay like any other. A log of
one model tells two constants apart: what a token takes with every expert at hand, and what a missed
byte adds. (A cost for each layer or expert would be the first again, one for each missed expert the
second.) Since a layer's hits are computed while its misses are read, the constants are those with
which a *replay* shows the fitted half's times, not those of the line through them.

Phones and shared hosts stumble: some tokens take several times as long for reasons that no trace
holds. Both constants are therefore fitted to least absolute errors, as non-negative least squares
with weights; what the stumbles add on average is a third figure, the *disturbance*, charged to
every token so that means are right.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.hardware_profiles.writing import write_machine, write_runtime
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import InputError
from moesim.simulator.fitting.engine_log import EngineLog
from moesim.simulator.fitting.fitted_profile import (
    Constants,
    machine_of,
    runtime_of,
)
from moesim.simulator.models.cost_shape import CostShape
from moesim.simulator.run_spec import RunSpec, resolve_shape
from moesim.simulator.runs import Prepared, prepare

# N decode steps, 2 columns: a constant and the bytes missed.
Floats = NDArray[np.float64]

MOST_ROUNDS = 40
CLOSE = 1e-4
STUMBLE = 1.5
"""A token that takes so many times its prediction counts as disturbed."""

_LEAST_ROWS = 8
_FITTING_ROUNDS = 60


@dataclass(frozen=True, slots=True)
class Errors:
    """Prediction against log over some rows; errors are relative and signed.

    Attributes:
        rows: How many.
        mean, p50, p99: Of the time of a token; the prediction is charged the average disturbance.
        p99_with_spread: The same of the p99, each token's time spread as the fitted half's were.
        correlation: Of the times token by token (Pearson).
        disturbed: Share of the tokens that took `STUMBLE` times their prediction or more.
        undisturbed_mean: Error of the mean over the other tokens, the disturbance left out; None
            where there is none.
        undisturbed_correlation: Correlation over those.
    """

    rows: int
    mean: float
    p50: float
    p99: float
    p99_with_spread: float
    correlation: float
    disturbed: float
    undisturbed_mean: float | None
    undisturbed_correlation: float


@dataclass(frozen=True, slots=True)
class LogFit:
    """What came of it.

    Attributes:
        constants: What was fitted.
        seen, unseen: Errors on the half that was fitted and on the other.
        predicted_ns_N: The replay's time of each decode step, disturbance included.
        missed_bytes_N: Bytes that the replay read in each.
        bytes_error: Its bytes over the logged ones, less 1; None where the log has none.
        bytes_correlation: Their correlation, token by token; likewise.
        is_fit_N: Which rows were fitted.
        machine, runtime: The profiles, as their YAML has them.
    """

    constants: Constants
    seen: Errors
    unseen: Errors
    predicted_ns_N: Floats
    missed_bytes_N: Floats
    bytes_error: float | None
    bytes_correlation: float | None
    is_fit_N: NDArray[np.bool_]
    machine: Mapping[str, Any]
    runtime: Mapping[str, Any]


def halves(rows: int, fit: str) -> NDArray[np.bool_]:
    """Return which rows are fitted: the ``first`` half, the ``second``, or the ``even`` ones."""
    number_N = np.arange(rows)
    chosen: Mapping[str, NDArray[np.bool_]] = {
        "first": number_N < rows // 2,
        "second": number_N >= rows // 2,
        "even": number_N % 2 == 0,
    }
    return chosen[fit]


def fit_log(spec: RunSpec, log: EngineLog, *, fit: str = "first") -> LogFit:
    """Fit one half of a log and predict the other.

    Args:
        spec: The run that the log is of: its trace, policies and room for experts. Machine and
            runtime that it names are not looked at.
        log: What the engine logged, a row for each decode step of the trace.
        fit: Which half, see `halves`.

    Raises:
        InputError: Log and trace do not belong together, or nothing can be told from the log.
    """
    shape, _ = resolve_shape(spec)
    missed_N = decode_bytes(_on(spec, shape, Constants(1e9, 1.0, 0.0)))
    if len(missed_N) != len(log.time_ns_N):
        raise InputError(
            f"{log.name}: {len(log.time_ns_N)} rows, but {spec.trace_name} has {len(missed_N)} "
            "decode steps; give the log of this very trace, a row for each"
        )
    if len(missed_N) < _LEAST_ROWS:
        raise InputError(f"{log.name}: {len(missed_N)} rows; fitting takes {_LEAST_ROWS} or more")
    is_fit_N = halves(len(missed_N), fit)
    fixed_ns, byte_ns = robust_line(missed_N[is_fit_N], log.time_ns_N[is_fit_N])
    if byte_ns <= 0 or fixed_ns <= 0:
        raise InputError(
            f"{log.name}: times do not rise with the bytes missed ({fixed_ns / 1e6:.3f} ms and "
            f"{byte_ns:.6f} ns per byte fitted); is this the policy and the room of that engine?"
        )
    residual_N = (log.time_ns_N - fixed_ns - byte_ns * missed_N)[is_fit_N]
    wanted = Constants(fixed_ns, byte_ns, max(0.0, float(residual_N.mean())))
    rates, replayed_N = _settle(spec, shape, wanted, missed_N, is_fit_N)
    predicted_N = replayed_N + wanted.disturbance_ns
    spread_N = (log.time_ns_N - predicted_N)[is_fit_N]

    def errors(of_N: NDArray[np.bool_]) -> Errors:
        return _errors(predicted_N[of_N], log.time_ns_N[of_N], spread_N, wanted.disturbance_ns)

    unseen = errors(~is_fit_N)
    source = f"{log.name} (SHA-256 {log.sha256[:12]}), {fit} half of {len(missed_N)} tokens"
    calm = unseen.mean if unseen.undisturbed_mean is None else unseen.undisturbed_mean
    bands = (abs(calm), abs(unseen.mean))
    read_N = log.read_bytes_N
    return LogFit(
        wanted,
        errors(is_fit_N),
        unseen,
        predicted_N,
        missed_N,
        None if read_N is None else float(missed_N.sum() / read_N.sum() - 1),
        None if read_N is None else _correlation(missed_N, read_N),
        is_fit_N,
        machine_of(shape, rates, wanted, source, bands),
        runtime_of(rates, source, bands),
    )


def _on(spec: RunSpec, shape: CostShape, rates: Constants) -> Prepared:
    """Return the run on the machine and runtime of some constants."""
    with tempfile.TemporaryDirectory() as folder:
        machine, runtime = Path(folder) / "machine.yaml", Path(folder) / "runtime.yaml"
        write_machine(machine_of(shape, rates, rates, "a candidate", (1.0, 1.0)), machine)
        write_runtime(runtime_of(rates, "a candidate", (1.0, 1.0)), runtime)
        return prepare(replace(spec, hardware=str(machine), runtime=str(runtime)))


def decode_bytes(prepared: Prepared) -> Floats:
    """Return the bytes that each decode step misses, counted without a clock."""
    controller = prepared.controller()
    counts = controller.counts
    seen: list[tuple[int, int]] = []
    count(
        controller,
        prepared.workload(),
        budget_bytes=prepared.memory.expert_bytes,
        on_step=lambda _: seen.append((counts.decode_demands, counts.bytes_demand)),
    )
    decode_demands, bytes_demand = np.asarray(seen, np.int64).T
    is_decode = np.diff(decode_demands, prepend=0) > 0
    missed_N: Floats = np.diff(bytes_demand, prepend=0)[is_decode].astype(np.float64)
    return missed_N


def robust_line(missed_N: Floats, time_N: Floats) -> tuple[float, float]:
    """Return constant and slope, neither negative, of least absolute error.

    Least squares again and again, a row weighing the inverse of its last residual.

    >>> line = robust_line(np.array([0.0, 1, 2, 3, 4]), np.array([5.0, 7, 9, 11, 90]))
    >>> [round(c, 2) for c in line]
    [5.0, 2.0]
    """
    scale = max(float(np.abs(missed_N).max()), 1.0)
    design_N2 = np.stack([np.ones_like(missed_N), missed_N / scale], axis=1)
    least = 1e-4 * float(np.median(time_N))
    weight_N = np.ones_like(time_N)
    found: Floats = np.zeros(2)
    for _ in range(_FITTING_ROUNDS):
        found = _non_negative(design_N2, time_N, np.sqrt(weight_N))
        weight_N = 1 / np.maximum(np.abs(design_N2 @ found - time_N), least)
    return float(found[0]), float(found[1] / scale)


def _non_negative(design_N2: Floats, time_N: Floats, root_N: Floats) -> Floats:
    """Return weighted least squares of two columns; one that comes out negative gets 0."""
    found = np.zeros(2)
    found[:] = np.linalg.lstsq(design_N2 * root_N[:, None], time_N * root_N, rcond=None)[0]
    negative = np.flatnonzero(found < 0)
    if len(negative):
        kept = 1 - int(negative[0])
        column_N = design_N2[:, kept] * root_N
        found = np.zeros(2)
        found[kept] = max(0.0, float(column_N @ (time_N * root_N) / (column_N @ column_N)))
    return found


def _settle(
    spec: RunSpec,
    shape: CostShape,
    wanted: Constants,
    missed_N: Floats,
    is_fit_N: NDArray[np.bool_],
) -> tuple[Constants, Floats]:
    """Return the constants with which the replay's own line is the one wanted, and its times."""
    rates = replace(wanted, disturbance_ns=0.0)
    for _ in range(MOST_ROUNDS):
        replayed = _on(spec, shape, rates).replay()
        time_N = np.asarray(replayed.tokens.gaps_ns, np.float64)
        fixed_ns, byte_ns = robust_line(missed_N[is_fit_N], time_N[is_fit_N])
        if fixed_ns <= 0 or byte_ns <= 0:
            break
        ratios = wanted.fixed_ns / fixed_ns, wanted.byte_ns / byte_ns
        if max(abs(ratio - 1) for ratio in ratios) < CLOSE:
            return replace(rates, disturbance_ns=wanted.disturbance_ns), time_N
        rates = replace(
            rates, fixed_ns=rates.fixed_ns * ratios[0], byte_ns=rates.byte_ns * ratios[1]
        )
    raise InputError(
        f"{spec.trace_name}: no machine shows this log's times under {spec.policies['schedule']}: "
        "a missed byte costs less than the computing that it is read beside; try --schedule "
        "resident_first, and see that policy and room are the engine's"
    )


def _errors(predicted_N: Floats, time_N: Floats, spread_N: Floats, disturbance_ns: float) -> Errors:
    bare_N = predicted_N - disturbance_ns
    is_calm_N = time_N < STUMBLE * bare_N
    calm = (
        float(bare_N[is_calm_N].mean() / time_N[is_calm_N].mean() - 1) if any(is_calm_N) else None
    )
    spread = (predicted_N[:, None] + spread_N).ravel()

    def p99(values: Floats) -> float:
        return float(np.percentile(values, 99))

    return Errors(
        rows=len(time_N),
        mean=float(predicted_N.mean() / time_N.mean() - 1),
        p50=float(np.median(predicted_N) / np.median(time_N) - 1),
        p99=p99(predicted_N) / p99(time_N) - 1,
        p99_with_spread=p99(spread) / p99(time_N) - 1,
        correlation=_correlation(predicted_N, time_N),
        disturbed=float(1 - is_calm_N.mean()),
        undisturbed_mean=calm,
        undisturbed_correlation=_correlation(bare_N[is_calm_N], time_N[is_calm_N]),
    )


def _correlation(one_N: Floats, other_N: Floats) -> float:
    """Return Pearson's correlation; 0 where one does not vary."""
    if not len(one_N) or min(float(np.std(one_N)), float(np.std(other_N))) == 0.0:
        return 0.0
    return float(np.corrcoef(one_N, other_N)[0, 1])
