"""Law 7: the same run gives the same bytes, whichever process carries it out."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.simulator import registry
from moesim.simulator.registry import Axis
from moesim.simulator.testing import engine, sample_spec, small_run, tiny_trace

EVERY_POLICY = [(axis, name) for axis in registry.AXES for name in registry.names(axis)]

IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_law_07_same_run_same_bytes import EVERY_POLICY, fingerprint
for axis, name in EVERY_POLICY:
    print(axis, name, fingerprint(axis, name))
"""


def fingerprint(axis: Axis, name: str) -> str:
    """Return a hash of all that a run of one policy decided and measured."""
    run = small_run(tiny_trace(), slots=8, seed=5, **{axis: sample_spec(axis, name)})
    controller = run.controller(keep_log=True)
    served = engine(run, controller)
    timings = served.run()
    controller.close()
    text = repr((controller.log, controller.counts, timings, served.spans))
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(("axis", "name"), EVERY_POLICY)
def test_a_run_repeats_itself(axis: Axis, name: str) -> None:
    """Facts, commands, counts, times and spans of a second run equal those of the first."""
    assert fingerprint(axis, name) == fingerprint(axis, name)


def test_another_process_gives_the_same_bytes() -> None:
    """Hash seeds, which order sets and differ by process, reach no decision and no output."""
    outputs = [
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS, str(Path(__file__).parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert len(outputs[0].splitlines()) == len(EVERY_POLICY)


def test_another_seed_gives_other_bytes() -> None:
    """The fingerprint sees more than the trace: random placement moves with the seed."""
    prints = set()
    for seed in (1, 2):
        run = small_run(tiny_trace(), cache="static:order=random", slots=8, seed=seed)
        prints.add(run.controller().initial())
    assert len(prints) == 2
