"""Copies: time against size in each direction, both at once, and after a pause."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

from moesim.backends.calibration import sheet as write
from moesim.backends.calibration.bench import Bench, Way
from moesim.backends.calibration.fitting import Check, fit_line
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Figure, Sheet
from moesim.backends.calibration.works import Work
from moesim.hardware_profiles.link import Pcie
from moesim.hardware_profiles.units import format_bytes, parse_bytes_per_s

_SECOND_NS = 1e9
_MB = 1_000_000
_WAYS: tuple[Way, ...] = ("h2d", "d2h", "pageable")
_LATENCY_SHARE = 0.9
_HALF = 0.5
_LONG = 10
_GENERATIONS = ("1.0", "2.0", "3.0", "4.0", "5.0", "6.0")
_WIDTHS = (1, 2, 4, 8, 16)
_WORDS = {
    "h2d": "copies in a row from pinned memory to the device",
    "d2h": "copies in a row from the device to pinned memory",
    "pageable": "copies from pageable memory to the device, by the host's clock",
}


def probes(bench: Bench) -> list[Probe]:
    """Return the probes of copies in a row, of all sizes and directions."""
    scale = bench.scale
    found = [
        Probe(_name(way, nbytes), partial(bench.copy_ns, way, nbytes))
        for way in _WAYS
        for nbytes in (*scale.copy_bytes, *scale.held_copy_bytes)
    ]
    longest = scale.long_copy_bytes
    found.append(Probe("copy h2d beside d2h", partial(bench.copy_beside_ns, longest)))
    found.append(Probe("copy h2d not beside", partial(bench.copy_ns, "h2d", longest)))
    return found


def idle_probes(bench: Bench, kernel: Work) -> list[Probe]:
    """Return the probes of one copy and one kernel after each pause; 0 comes first.

    Args:
        bench: The device.
        kernel: A captured work.
    """
    copy = partial(bench.lone_copy_ns, bench.scale.long_copy_bytes)
    found = []
    for what, measure in (("copy", copy), ("kernel", partial(bench.kernel_ns, kernel))):
        found.append(Probe(f"{what} after 0 s", partial(_after_pause, 0.0, measure)))
        found += [
            Probe(
                f"{what} after {pause_s} s",
                partial(_after_pause, pause_s, measure),
                every=_LONG if pause_s >= 1 else 2,
            )
            for pause_s in bench.scale.pauses_s
        ]
    return found


def _after_pause(pause_s: float, measure: Callable[[], float]) -> float:
    """Measure after a pause in which the host spins, as the driver's does."""
    measure()
    over_s = perf_counter() + pause_s
    while perf_counter() < over_s:
        pass
    return measure()


def link(bench: Bench, sheet: Sheet, reported: Pcie | None) -> dict[str, Any]:
    """Return the profile's section ``link``.

    Args:
        bench: The device that was measured.
        sheet: Its samples; sources are added.
        reported: The PCIe connection that the driver reports.
    """
    scale = bench.scale
    times = {
        way: [sheet.median(_name(way, nbytes)) for nbytes in scale.copy_bytes] for way in _WAYS
    }
    fastest = max(
        nbytes * _SECOND_NS / time_ns
        for row in times.values()
        for nbytes, time_ns in zip(scale.copy_bytes, row, strict=True)
    )
    pcie, source = _connection(sheet, reported, fastest)
    section: dict[str, Any] = {"pcie": [f"{pcie.generation} x{pcie.width}", source]}
    for way in _WAYS:
        section[way] = _route(way, bench, sheet, times[way], pcie.bytes_per_s)
    section["first_copy"] = _first_copy(bench, sheet)
    return section


def most_read(link: Mapping[str, Any], expert_bandwidth: Figure) -> Figure:
    """Return the fastest that the host's memory was seen to be read: it can do that at least."""
    rates, source = link["h2d"]["bandwidth"]
    seen: list[Figure] = [[rate, source] for rate in rates.values()]
    fastest: Figure = max([*seen, expert_bandwidth], key=lambda one: parse_bytes_per_s(one[0]))
    return fastest.copy()


def _name(way: Way, nbytes: int) -> str:
    return f"copy {way} {format_bytes(nbytes)}"


def _connection(sheet: Sheet, reported: Pcie | None, fastest: float) -> tuple[Pcie, str]:
    if reported is not None and reported.bytes_per_s >= fastest:
        return reported, sheet.read_off("pcie", "nvidia-smi, the connection's maximum")
    widths = [Pcie(generation, width) for generation in _GENERATIONS for width in _WIDTHS]
    enough = [pcie for pcie in widths if pcie.bytes_per_s >= fastest]
    least = min(enough or [widths[-1]], key=lambda pcie: pcie.bytes_per_s)
    text = "the narrowest connection that carries the fastest copy; none was reported"
    return least, sheet.estimate("pcie", text, "50%")


def _route(
    way: Way, bench: Bench, sheet: Sheet, times: list[float], most_per_s: int
) -> dict[str, Any]:
    """Fit latency, then say at which rate the bytes of each size followed."""
    sizes = bench.scale.copy_bytes
    _, latency = fit_line([float(size) for size in sizes], times)
    latency = round(min(latency, _LATENCY_SHARE * min(times)))
    written_per_s = most_per_s // _MB * _MB  # no more once it is rounded to MB/s
    bytes_ns = [
        max(time_ns - latency, size * _SECOND_NS / written_per_s)
        for size, time_ns in zip(sizes, times, strict=True)
    ]
    for at, (before, after) in enumerate(pairwise(bytes_ns), start=1):
        bytes_ns[at] = max(before * 1.001, after, bytes_ns[at - 1] * 1.001)
    checks = [
        Check(
            _name(way, size),
            latency + _between(size, sizes, bytes_ns),
            sheet.median(_name(way, size)),
        )
        for size in bench.scale.held_copy_bytes
    ]
    probes_used = [_name(way, size) for size in sizes]
    source = sheet.source(f"copies-{way}", _WORDS[way], probes_used, checks)
    rates = {
        format_bytes(size): write.bytes_per_s(size * _SECOND_NS / time_ns)
        for size, time_ns in zip(sizes, bytes_ns, strict=True)
    }
    return {"latency": [write.ns(latency), source], "bandwidth": [rates, source]}


def _between(size: int, sizes: tuple[int, ...], bytes_ns: list[float]) -> float:
    """Interpolate as a profile's route does: time linearly between sizes."""
    for (left, left_ns), (right, right_ns) in pairwise(zip(sizes, bytes_ns, strict=True)):
        if left <= size <= right:
            return left_ns + (right_ns - left_ns) * (size - left) / (right - left)
    raise ValueError(f"{size} bytes lie outside the sizes that were fitted")


def _first_copy(bench: Bench, sheet: Sheet) -> dict[str, Any]:
    """Take what the longest pause adds, from the shortest pause that adds half of it."""
    pauses = bench.scale.pauses_s
    at_once = sheet.summary("copy after 0 s")
    extras = [sheet.median(f"copy after {pause} s") - at_once.median for pause in pauses]
    source = sheet.source(
        "pauses",
        f"one copy of {format_bytes(bench.scale.long_copy_bytes)} after pauses of "
        f"{', '.join(f'{pause:g}' for pause in pauses)} s, less one at once",
        ["copy after 0 s", *(f"copy after {pause} s" for pause in pauses)],
    )
    most = max(0.0, extras[-1])
    if most <= at_once.spread * at_once.median:
        return {"extra": ["0us", source], "after": [f"{pauses[-1]:g} s", source]}
    after = next(
        pause for pause, extra in zip(pauses, extras, strict=True) if extra >= _HALF * most
    )
    return {"extra": [write.ns(most), source], "after": [f"{after:g} s", source]}
