"""The one place where written quantities ("24GiB", "25.0 GB/s", "8 µs") become numbers.

Binary and decimal prefixes differ: 24GiB is 25,769,803,776 bytes, 24GB is 24,000,000,000. A number
without a unit is refused, as is a unit that is not in the table. Inside the code there is one unit
per quantity: bytes, bytes per second, FLOP per second, integer nanoseconds, parts per million.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from fractions import Fraction

from moesim.hardware_profiles.errors import ProfileError

_BYTES = {
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", start=1)},
    "KB": 1000,
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)},
}
_BYTES_PER_S = {f"{unit}/s": factor for unit, factor in _BYTES.items()}
_FLOP_PER_S = {f"{prefix}FLOP/s": 1000**power for power, prefix in enumerate("GTP", start=3)}
_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_PPM = {"": 1_000_000, "%": 10_000, "ppm": 1}

_QUANTITY = re.compile(r"\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)\s*(\S*)\s*")


def parse_bytes(text: object) -> int:
    """Return bytes.

    >>> parse_bytes("24GiB"), parse_bytes("24 GB")
    (25769803776, 24000000000)
    """
    return _parse(text, _BYTES, "a size such as 24GiB or 512MB")


def parse_bytes_per_s(text: object) -> int:
    """Return bytes per second; GB/s is decimal, as vendors write it.

    >>> parse_bytes_per_s("25.0 GB/s")
    25000000000
    """
    return _parse(text, _BYTES_PER_S, "a bandwidth such as 25.0 GB/s")


def parse_flop_per_s(text: object) -> int:
    """Return floating-point operations per second, a multiply and an add counted as two.

    >>> parse_flop_per_s("990 TFLOP/s")
    990000000000000
    """
    return _parse(text, _FLOP_PER_S, "a compute rate such as 990 TFLOP/s")


def parse_ns(text: object) -> int:
    """Return integer nanoseconds.

    >>> parse_ns("8us"), parse_ns("0.7 µs")
    (8000, 700)
    """
    return _parse(text, _NS, "a time such as 8us or 1.5 ms")


def parse_ppm(text: object) -> int:
    """Return parts per million of a share that is written as 0.055, 5.5% or 55000ppm.

    >>> parse_ppm("5.5%"), parse_ppm(0.055), parse_ppm("55000 ppm")
    (55000, 55000, 55000)
    """
    return _parse(text, _PPM, "a share such as 0.055, 5.5% or 55000ppm")


def format_bytes(size_bytes: int) -> str:
    """Return a size as people read it, exact where it is a whole number of a unit.

    >>> format_bytes(24 * 2**30), format_bytes(1_500_000_000)
    ('24GiB', '1.4GiB')
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes >= _BYTES[unit]:
            return f"{_short(Fraction(size_bytes, _BYTES[unit]))}{unit}"
    return f"{size_bytes}B"


def format_bytes_per_s(rate: int) -> str:
    """Return a bandwidth in decimal GB/s.

    >>> format_bytes_per_s(936_200_000_000)
    '936.2 GB/s'
    """
    return f"{_short(Fraction(rate, 10**9))} GB/s"


def format_flop_per_s(rate: int) -> str:
    """Return a compute rate in TFLOP/s.

    >>> format_flop_per_s(989_400_000_000_000)
    '989.4 TFLOP/s'
    """
    return f"{_short(Fraction(rate, 10**12))} TFLOP/s"


def format_ns(time_ns: int) -> str:
    """Return a time in the largest unit that keeps it at 1 or more.

    >>> format_ns(700), format_ns(2_900), format_ns(100_000_000)
    ('700 ns', '2.9 µs', '100 ms')
    """
    for unit in ("s", "ms", "µs"):
        if time_ns >= _NS[unit]:
            return f"{_short(Fraction(time_ns, _NS[unit]))} {unit}"
    return f"{time_ns} ns"


def format_ppm(share_ppm: int) -> str:
    """Return a share in percent.

    >>> format_ppm(55_000)
    '5.5%'
    """
    return f"{_short(Fraction(share_ppm, 10_000))}%"


def _parse(text: object, factors: Mapping[str, int], wanted: str) -> int:
    """Return `text` in base units, rounded half to even, or say what is wrong with it."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ProfileError(f"expected {wanted}, got {text!r}")
    written = str(text)
    match = _QUANTITY.fullmatch(written)
    if match is None:
        raise ProfileError(f"expected {wanted}, got {written!r}")
    number, unit = match.groups()
    if unit not in factors:
        units = ", ".join(name for name in factors if name)
        if not unit:
            raise ProfileError(f"{written!r} has no unit; write {wanted} (units: {units})")
        close = get_close_matches(unit, factors, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ProfileError(f"unknown unit {unit!r} in {written!r}; {hint}units: {units}")
    value = Fraction(number) * factors[unit]
    if value < 0:
        raise ProfileError(f"expected {wanted}, not below 0, got {written!r}")
    return round(value)


def _short(value: Fraction) -> str:
    """Return one decimal, none where it would be 0."""
    return f"{float(value):.1f}".removesuffix(".0")
