"""The driver's contract: what it does in order, and what it refuses by name."""

import time
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")

from moesim.backends.drivers.threads import ThreadsDriver  # noqa: E402 - after the skip
from moesim.backends.testing import check_backend  # noqa: E402
from moesim.simulator.errors import CapabilityError, ProtocolError  # noqa: E402
from moesim.simulator.messages import Copy, Drop, Move, Run, WakeAt  # noqa: E402
from moesim.simulator.terms import GPU, NVME, RAM, Cause, Device, Place, Tier  # noqa: E402

VRAM = Place(Tier.VRAM, 0, 0, 0, 0)


def test_the_threads_driver_passes_the_check() -> None:
    """The driver that ships does what every backend has to."""
    check_backend(ThreadsDriver, torch.device("cpu"), has_lender=True)


def test_a_driver_that_copies_another_expert_is_caught() -> None:
    """The check tells a driver that moves the wrong bytes."""

    class Careless(ThreadsDriver):
        def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
            super().copy_bytes(expert ^ 1, stretch, offset_bytes)

    with pytest.raises(AssertionError, match="logits differ"):
        check_backend(Careless, torch.device("cpu"))


def test_a_driver_that_ignores_dependencies_is_caught() -> None:
    """The check tells a driver whose runs begin before their copies have ended."""

    class Hasty(ThreadsDriver):
        def start_run(self, command: Run, offsets_bytes: Any) -> None:
            super().start_run(command._replace(after=()), offsets_bytes)

        def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
            time.sleep(0.002)  # slow enough for a run to overtake it
            super().copy_bytes(expert, stretch, offset_bytes)

    with pytest.raises(AssertionError, match="logits differ"):
        check_backend(Hasty, torch.device("cpu"))


@pytest.fixture
def driver(offloaded: Callable[[str], Any]) -> Any:
    """Return a driver with nothing to do, closed at the end."""
    it = offloaded("Mixtral")
    deciding = it.deciding("lru none resident_first", 9)
    parts = it.store.parts
    controller = deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L
    )
    with ThreadsDriver(controller, it.store, deciding.budget_bytes) as made:
        yield made


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (Move(1, 0, 0, VRAM, VRAM), "does not do Move"),
        (Drop(0, 0, VRAM), "does not do Drop"),
        (WakeAt(1, 5), "does not do WakeAt"),
        (Copy(1, 0, 1, RAM, VRAM, Cause.DEMAND), "whole experts, not part 1"),
        (Copy(1, 0, 0, NVME, VRAM, Cause.DEMAND), "from NVME"),
        (Copy(1, 0, 0, RAM, RAM, Cause.DEMAND), "VRAM of device 0"),
        (Copy(1, 0, 0, RAM, VRAM._replace(device=1), Cause.DEMAND), "VRAM of device 0"),
        (
            Copy(1, 0, 0, RAM, VRAM._replace(offset_bytes=None), Cause.DEMAND),
            "slots at fixed offsets",
        ),
        (Run(1, (0,), (1,), Device("gpu", 1)), "on device 0, not on gpu 1"),
        (Run(1, (0,), (1,), GPU, (), 2), "not part 2"),
    ],
)
def test_what_it_does_not_do_is_refused_by_name(driver: Any, command: Any, message: str) -> None:
    """A command outside the driver's means is a one-line error that names driver and command."""
    with pytest.raises(CapabilityError, match=message) as caught:
        driver._obey[type(command)](command)
    assert str(caught.value).startswith("the threads driver ")


def test_a_run_of_an_expert_without_room_is_the_controllers_bug(driver: Any) -> None:
    """An expert that was never copied has no offset, and a run of it is refused."""
    with pytest.raises(ProtocolError, match="expert 3, which never had room"):
        driver._obey[Run](Run(1, (3,), (1,), GPU))


def test_copies_arrive_byte_for_byte_in_order(driver: Any, offloaded: Callable[[str], Any]) -> None:
    """Copies to one slot end in the order handed over; the last one's bytes remain."""
    store = offloaded("Mixtral").store
    size = store.sizes_L[0]
    place = Place(Tier.VRAM, 0, 0, 2, 2 * size)
    for n, expert in enumerate((4, 7, 11), start=1):
        driver._obey[Copy](Copy(n, expert, 0, RAM, place, Cause.DEMAND))
    driver.drain()
    assert torch.equal(store.blob(11), driver._arena_B[2 * size : 3 * size])
    assert driver.timings.engine_copies == {"h2d": 3}
    assert driver.timings.engine_bytes == {"h2d": 3 * size}


def test_closing_twice_is_closing_once(driver: Any) -> None:
    """A second close finds nothing to do."""
    driver.close()
    driver.close()
