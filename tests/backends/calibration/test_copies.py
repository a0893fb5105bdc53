"""The link's section, from copy times whose law is known."""

from types import SimpleNamespace
from typing import Any

import pytest

from moesim.backends.calibration import copies
from moesim.backends.calibration.scale import THREADS
from moesim.backends.calibration.sheet import Provenance, Sheet
from moesim.hardware_profiles.link import Pcie
from moesim.hardware_profiles.units import format_bytes, parse_bytes_per_s, parse_ns

LATENCY_NS = 5_000.0
BYTES_PER_NS = 10.0
BENCH: Any = SimpleNamespace(scale=THREADS)


def made_sheet(pause_extra_ns: float = 0.0, bytes_per_ns: float = BYTES_PER_NS) -> Sheet:
    """Return samples of a link of 10 GB/s and 5 µs that needs longer after 0.1 s and more."""
    samples = {
        f"copy {way} {format_bytes(size)}": [LATENCY_NS + size / bytes_per_ns] * 5
        for way in ("h2d", "d2h", "pageable")
        for size in (*THREADS.copy_bytes, *THREADS.held_copy_bytes)
    }
    samples["copy after 0 s"] = [400_000.0] * 5
    for pause in THREADS.pauses_s:
        extra_ns = pause_extra_ns if pause >= 0.1 else 0.0
        samples[f"copy after {pause} s"] = [400_000.0 + extra_ns] * 5
    return Sheet(samples, Provenance("a test", "2026-11-24", "none"))


def test_latency_and_bandwidth_are_found_again() -> None:
    """Copy times of a known law give back latency, rates, and no error on sizes held out."""
    sheet = made_sheet()
    section = copies.link(BENCH, sheet, Pcie("5.0", 16))
    assert parse_ns(section["h2d"]["latency"][0]) == pytest.approx(LATENCY_NS, rel=0.01)
    rates = [parse_bytes_per_s(rate) for rate in section["h2d"]["bandwidth"][0].values()]
    assert [10e9] * len(rates) == pytest.approx(rates, rel=0.01)
    assert 3 * len(THREADS.held_copy_bytes) == len(sheet.checks)
    assert all(abs(check.error) < 0.01 for check in sheet.checks)


def test_a_pause_that_costs_is_found_with_its_threshold() -> None:
    """What copies after a pause take longer is the extra; the shortest such pause its bound."""
    section = copies.link(BENCH, made_sheet(200_000.0), Pcie("5.0", 16))
    assert parse_ns(section["first_copy"]["extra"][0]) == 200_000
    assert parse_ns(section["first_copy"]["after"][0]) == 100_000_000


def test_a_pause_that_costs_nothing_adds_nothing() -> None:
    """Without a difference beyond the spread the extra is 0."""
    section = copies.link(BENCH, made_sheet(), Pcie("5.0", 16))
    assert parse_ns(section["first_copy"]["extra"][0]) == 0


def test_no_rate_is_written_above_what_the_connection_carries() -> None:
    """Without the latency copies beat the connection by 1 %; the rounded figure does not."""
    section = copies.link(BENCH, made_sheet(bytes_per_ns=30.5), None)
    assert section["pcie"][0] == "6.0 x4"
    rates = [parse_bytes_per_s(rate) for rate in section["h2d"]["bandwidth"][0].values()]
    assert max(rates) == 30_254_000_000 < Pcie("6.0", 4).bytes_per_s


def test_an_unreported_connection_is_an_estimate() -> None:
    """Where the driver reports no PCIe connection the narrowest possible one is estimated."""
    sheet = made_sheet()
    section = copies.link(BENCH, sheet, None)
    assert section["pcie"][1] == "pcie"
    assert sheet.sources["pcie"]["evidence"] == "estimated"
