"""Fits profiles to logs of machines that we know: made-up ones, which a replay itself wrote."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moesim.hardware_profiles.writing import write_machine, write_runtime
from moesim.simulator.errors import InputError
from moesim.simulator.fitting.engine_log import EngineLog
from moesim.simulator.fitting.fitted_profile import Constants
from moesim.simulator.fitting.log_fit import LogFit, decode_bytes, fit_log
from moesim.simulator.memory import MemorySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.traces import synthetic

TRUTH = Constants(fixed_ns=4e6, byte_ns=0.5, disturbance_ns=0.0)


@pytest.fixture
def spec() -> RunSpec:
    """Return a run of 4 x 8 experts of 1 MB, of which half have room, 120 decode steps."""
    trace = synthetic.sticky(seed=3, reuse=0.6, requests=3, prompt_tokens=4, decode_tokens=40)
    header = trace.header.model_copy(
        update={"expert_bytes": (1_000_000,) * 4, "dense_bytes": (500_000,) * 4}
    )
    return RunSpec(
        trace=replace(trace, header=header),
        trace_name="made up",
        hardware="",
        policies={"cache": "lru", "prefetch": "none", "schedule": "resident_first"},
        memory=MemorySpec(None, None, "50%"),
    )


def _logged(times_ns: NDArray[np.float64]) -> EngineLog:
    return EngineLog("made-up.csv", "0" * 64, times_ns, None, {"time": "wall_ms"})


def _replayed(spec: RunSpec, fit: LogFit, folder: Path) -> NDArray[np.float64]:
    machine, runtime = folder / "machine.yaml", folder / "runtime.yaml"
    write_machine(fit.machine, machine)
    write_runtime(fit.runtime, runtime)
    run = prepare(replace(spec, hardware=str(machine), runtime=str(runtime)))
    return np.asarray(run.replay().tokens.gaps_ns, np.float64)


@pytest.fixture
def line(spec: RunSpec) -> NDArray[np.float64]:
    """Return token times that are a constant and one for each missed byte."""
    missed_N = decode_bytes(prepare(replace(spec, hardware="rtx4090")))
    return TRUTH.fixed_ns + TRUTH.byte_ns * missed_N


def test_a_made_up_machine_is_found_again(
    spec: RunSpec, line: NDArray[np.float64], tmp_path: Path
) -> None:
    """Both constants come back, and the profiles written show the unseen half's mean."""
    fit = fit_log(spec, _logged(line))
    assert pytest.approx(TRUTH.fixed_ns, rel=1e-3) == fit.constants.fixed_ns
    assert pytest.approx(TRUTH.byte_ns, rel=1e-3) == fit.constants.byte_ns
    assert abs(fit.unseen.mean) < 0.01
    assert fit.unseen.correlation > 0.95
    replayed_N = _replayed(spec, fit, tmp_path)
    assert replayed_N == pytest.approx(fit.predicted_ns_N, rel=1e-6)


def test_stumbles_do_not_bend_the_line_and_their_mean_is_charged(
    spec: RunSpec, line: NDArray[np.float64], tmp_path: Path
) -> None:
    """With every tenth token 50 ms late the constants stay and means are right with 5 ms more."""
    late_N = np.where(np.arange(len(line)) % 10 == 7, 5e7, 0.0)
    fit = fit_log(spec, _logged(line + late_N))
    assert pytest.approx(TRUTH.fixed_ns, rel=0.01) == fit.constants.fixed_ns
    assert pytest.approx(TRUTH.byte_ns, rel=0.01) == fit.constants.byte_ns
    assert pytest.approx(5e6, rel=0.02) == fit.constants.disturbance_ns
    assert abs(fit.unseen.mean) < 0.02
    assert pytest.approx(0.1) == fit.unseen.disturbed
    assert abs(fit.unseen.undisturbed_mean) < 0.01
    assert _replayed(spec, fit, tmp_path).mean() == pytest.approx((line + late_N).mean(), rel=0.02)


def test_the_unseen_half_has_no_part_in_the_fit(spec: RunSpec, line: NDArray[np.float64]) -> None:
    """Other times in the second half change its errors and nothing else."""
    other = np.where(np.arange(len(line)) < len(line) // 2, line, 2 * line)
    one, two = fit_log(spec, _logged(line)), fit_log(spec, _logged(other))
    assert one.constants == two.constants
    assert np.array_equal(one.predicted_ns_N, two.predicted_ns_N)
    assert pytest.approx(one.unseen.mean, abs=1e-9) != two.unseen.mean


def test_the_band_is_the_error_on_the_unseen_half(spec: RunSpec, line: NDArray[np.float64]) -> None:
    """A machine that turned a quarter slower is written with the band that this takes."""
    slower = np.where(np.arange(len(line)) < len(line) // 2, line, 1.25 * line)
    fit = fit_log(spec, _logged(slower))
    assert pytest.approx(-0.2, abs=0.01) == fit.unseen.undisturbed_mean
    band = fit.machine["sources"]["computing"]["band"]
    assert pytest.approx(200_000, rel=0.05) == int(band.removesuffix("ppm"))


def test_a_log_of_another_length_is_refused(spec: RunSpec, line: NDArray[np.float64]) -> None:
    """The line says how many rows there are and how many decode steps."""
    with pytest.raises(InputError, match="119 rows, but made up has 120 decode steps"):
        fit_log(spec, _logged(line[:-1]))


def test_times_that_do_not_follow_the_bytes_are_refused(spec: RunSpec) -> None:
    """A constant time tells nothing of the link; the question names policy and room."""
    with pytest.raises(InputError, match="times do not rise with the bytes missed"):
        fit_log(spec, _logged(np.full(120, 5e6)))
