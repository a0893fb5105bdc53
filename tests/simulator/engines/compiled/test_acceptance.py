"""What the compiled engine does not take is refused by name, with the engine that does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moesim.simulator.engines.compiled.engine import replay_compiled
from moesim.simulator.errors import CapabilityError, UnavailableError
from moesim.simulator.runs import ENGINE_NAMES
from moesim.simulator.testing import small_run, tiny_trace

SAMPLE = "traces/samples/twin-mixtral-8x7b-32x8.npz"
REFUSED = [
    {"cache": "likely_use"},
    {"cache": "insert_cap:limit=2/lru"},
    {"cache": "lfu:decay=0.9"},
    {"cache": "belady:admit=bypass"},
    {"prefetch": "next_gate:take=first_missing"},
    {"prefetch": "byte_budget/next_gate"},
    {"schedule": "cpu_on_miss"},
]


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: next(iter(options.values())))
def test_what_it_does_not_have_is_refused_by_name(options: dict[str, str]) -> None:
    """A policy, a guard or an option that was not compiled is named, beside the way out."""
    pytest.importorskip("numba")
    run = small_run(tiny_trace(), slots=9, **options)
    with pytest.raises(CapabilityError, match="engine compiled .*use --engine clock") as caught:
        replay_compiled(run)
    assert next(iter(options.values())) in str(caught.value)


def test_an_oracle_that_looks_beyond_one_turn_is_refused() -> None:
    """A horizon of more layers than there are is named as too far."""
    pytest.importorskip("numba")
    run = small_run(tiny_trace(layers=2), prefetch="oracle:horizon=3", slots=9)
    with pytest.raises(CapabilityError, match="at most 2 layers ahead"):
        replay_compiled(run)


def test_without_numba_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba is absent the message says what to install, and which engine needs nothing."""
    monkeypatch.setattr("moesim.simulator.engines.compiled.acceptance.find_spec", lambda _: None)
    with pytest.raises(UnavailableError, match="pip install 'moesim\\[fast\\]'.*--engine clock"):
        replay_compiled(small_run(tiny_trace(), slots=9))


def test_without_numba_the_command_exits_with_3(repository: Path, tmp_path: Path) -> None:
    """The command line gives one line and exit code 3."""
    script = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'numba' else find(name, *a)\n"
        "from moesim.simulator.cli import main\n"
        f"sys.argv = ['moesim', 'simulate', {str(repository / SAMPLE)!r}, '--hardware', 'rtx4090', "
        "'--slots', '50%', '--format', 'int4', '--engine', 'compiled']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("moesim: engine compiled needs numba; run: pip install")
    assert done.stderr.count("\n") == 1


def test_the_engines_are_listed_in_order() -> None:
    """The default stands first and the compiled engine is one of those that a run may name."""
    assert ENGINE_NAMES == ("clock", "simpy", "compiled")
