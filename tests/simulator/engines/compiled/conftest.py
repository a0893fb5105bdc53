"""The loops are compiled by one of the workers that run the tests; the others read what it kept."""

import fcntl
import importlib.util

import pytest

from moesim.simulator.testing import small_run, tiny_trace


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Run every compiled loop once, one worker after the other."""
    if importlib.util.find_spec("numba") is None:
        return
    from moesim.simulator.engines.compiled.counting import count  # noqa: PLC0415  it needs numba
    from moesim.simulator.engines.compiled.engine import replay_compiled  # noqa: PLC0415  beside it

    folder = tmp_path_factory.getbasetemp().parent  # that of the session, shared by its workers
    with (folder / "compiling.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        replay_compiled(small_run(tiny_trace(), slots=9, cache="belady", prefetch="next_gate"))
        count(small_run(tiny_trace(), slots=9))
