"""Interventions: one figure of the profiles is changed, and the machine is made so.

Nothing is calibrated again. A model of the machine that only fits what it was fitted on fails here.

- ``link=0.5``: every byte travels twice (``1/n``: n times), as on a link half as fast.
- ``copies=8``: each expert is handed over in so many copies.
- ``cpu_threads=4``: so many threads compute the CPU's experts, at a rate in proportion.
- ``pageable``: experts are copied from pageable memory, which holds the host (a GPU, made-up
  weights: those of four experts stand for all).
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch

from moesim.backends.execution import MakeDriver
from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.hardware_profiles.link import Route, SizePoint
from moesim.validation.intervening import COPIES, CPU_THREADS, LINK, PAGEABLE, Intervention

Profiles = tuple[HardwareProfile, RuntimeProfile]
STAND_INS = 4
"""Experts whose weights stand for all in pageable memory; more than a cache of the CPU holds."""


def predicted(one: Intervention, profiles: Profiles, cpu_threads: int) -> Profiles:
    """Return the profiles with the one figure changed; the machine's name says so.

    Args:
        one: The intervention.
        profiles: As they were calibrated.
        cpu_threads: With how many the figures of the CPU's experts were measured.
    """
    machine, runtime = profiles
    changes: dict[str, Callable[[], Profiles]] = {
        LINK: lambda: (_slower_link(machine, one.times), runtime),
        CPU_THREADS: lambda: (_fewer_threads(machine, one.times, cpu_threads), runtime),
        COPIES: lambda: (machine, _copying(runtime, pieces_per_expert=one.times)),
        PAGEABLE: lambda: (machine, _copying(runtime, source="pageable", blocking=True)),
    }
    machine, runtime = changes[one.name]()
    return machine.model_copy(update={"name": f"{machine.name} with {one.text}"}), runtime


def made_so(one: Intervention, make_driver: MakeDriver) -> MakeDriver:
    """Return what makes drivers of a machine that is as predicted."""
    kinds: dict[str, Callable[[Any, int], Any]] = {
        LINK: _again,
        COPIES: _in_pieces,
        CPU_THREADS: _with_threads,
        PAGEABLE: _from_pageable,
    }
    made: MakeDriver = kinds[one.name](make_driver, one.times)
    return made


def _slower_link(machine: HardwareProfile, times: int) -> HardwareProfile:
    def slower(route: Route) -> Route:
        latency, bandwidth = route.latency, route.bandwidth
        points = tuple(
            SizePoint(point.size_bytes, round(Fraction(point.bytes_per_s, times)))
            for point in bandwidth.value
        )
        return route.model_copy(
            update={
                "latency": latency.model_copy(update={"value": times * latency.value}),
                "bandwidth": bandwidth.model_copy(update={"value": points}),
            }
        )

    link = machine.link
    changed = {"h2d": slower(link.h2d), "pageable": slower(link.pageable)}
    return machine.model_copy(update={"link": link.model_copy(update=changed)})


def _fewer_threads(machine: HardwareProfile, threads: int, measured: int) -> HardwareProfile:
    host = machine.host
    names = ("expert_bandwidth", "expert_bandwidth_while_copying", "expert_flops")
    figures = {name: getattr(host, name) for name in names}
    changed = {
        name: figure.model_copy(update={"value": round(Fraction(figure.value * threads, measured))})
        for name, figure in figures.items()
    }
    return machine.model_copy(update={"host": host.model_copy(update=changed)})


def _copying(runtime: RuntimeProfile, **changed: object) -> RuntimeProfile:
    return runtime.model_copy(update={"copying": runtime.copying.model_copy(update=dict(changed))})


def _again(driver: Any, times: int) -> Any:  # noqa: ANN401  a class of drivers, made at run time
    class Again(driver):  # type: ignore[misc]  # likewise
        """Copies every byte so many times."""

        def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
            for _ in range(times):
                super().copy_bytes(expert, stretch, offset_bytes)

    return Again


def _in_pieces(driver: Any, pieces: int) -> Any:  # noqa: ANN401  likewise
    class InPieces(driver):  # type: ignore[misc]  # likewise
        """Copies each stretch in so many pieces."""

        def copy_bytes(self, expert: int, stretch: tuple[int, int], offset_bytes: int) -> None:
            begin, end = stretch
            cuts = [begin + (end - begin) * piece // pieces for piece in range(pieces + 1)]
            for left, right in pairwise(cuts):
                super().copy_bytes(expert, (left, right), offset_bytes + left - begin)

    return InPieces


def _with_threads(driver: Any, threads: int) -> Any:  # noqa: ANN401  likewise
    class WithThreads(driver):  # type: ignore[misc]  # likewise
        """Computes with so many threads until it is closed."""

        def __init__(self, *arguments: object, **options: object) -> None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(threads)
            super().__init__(*arguments, **options)

        def close(self) -> None:
            super().close()
            torch.set_num_threads(self._threads_before)

    return WithThreads


def _from_pageable(driver: Any, _times: int) -> Any:  # noqa: ANN401  likewise
    class FromPageable(driver):  # type: ignore[misc]  # likewise
        """Copies from ordinary memory."""

        def __init__(self, controller: object, store: Any, *rest: object, **options: Any) -> None:  # noqa: ANN401  as above
            super().__init__(controller, store, *rest, **options)
            room = max(store.sizes_L)
            self._stand_ins_B = torch.empty(STAND_INS * room, dtype=torch.uint8)
            for number in range(STAND_INS):
                blob_B = store.blob(number % store.parts.experts)
                self._stand_ins_B[number * room : number * room + len(blob_B)].copy_(blob_B)
            begin = self._stand_ins_B.data_ptr()
            everyone = store.parts.experts * len(store.sizes_L)
            self._sources = [begin + expert % STAND_INS * room for expert in range(everyone)]

    return FromPageable
