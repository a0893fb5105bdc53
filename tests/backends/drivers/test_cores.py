"""The threads that compute experts on the CPU leave cores to the host's loop."""

import os
import threading

import pytest

torch = pytest.importorskip("torch", reason="it is torch's threads that compute")

from moesim.backends.drivers.cuda.cpu_experts import leave_cores  # noqa: E402 - after the skip


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core to leave")
def test_the_first_core_is_left_to_the_host() -> None:
    """A thread that leaves cores keeps off the first and to 3 of 4; the caller keeps its own."""
    mine, threads = sorted(os.sched_getaffinity(0)), torch.get_num_threads()
    seen: list[tuple[list[int], int]] = []

    def serve() -> None:
        torch.set_num_threads(len(mine))
        leave_cores()
        seen.append((sorted(os.sched_getaffinity(0)), torch.get_num_threads()))

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()

    assert seen == [(mine[1:], len(mine) * 3 // 4)]
    assert mine == sorted(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
