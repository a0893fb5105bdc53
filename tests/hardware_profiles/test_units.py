"""Written quantities become numbers in one place, or are refused with the way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.hardware_profiles import ProfileError, units


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (25_769_803_776, "24GiB"),
        (24_000_000_000, "24GB"),
        (24_000_000_000, " 24 GB "),
        (12_455_405_158, "11.6GiB"),
        (16_777_216, "16MiB"),
        (1, "1B"),
        (500, "0.5kB"),
        (500, ".5KB"),
    ],
)
def test_sizes_keep_binary_and_decimal_prefixes_apart(expected: int, text: str) -> None:
    """A GiB and a GB differ by 7 %, and both are read exactly."""
    assert expected == units.parse_bytes(text)


def test_each_quantity_has_one_unit_inside() -> None:
    """Bandwidths become bytes/s, rates FLOP/s, times ns, shares ppm."""
    assert units.parse_bytes_per_s("25.0 GB/s") == 25_000_000_000
    assert units.parse_bytes_per_s("25GiB/s") == 26_843_545_600
    assert units.parse_flop_per_s("989.4 TFLOP/s") == 989_400_000_000_000
    assert units.parse_flop_per_s("1PFLOP/s") == 1_000_000_000_000_000
    assert 8_000 == units.parse_ns("8us") == units.parse_ns("8 µs") == units.parse_ns("8 μs")
    assert units.parse_ns("1.5ms") == 1_500_000
    assert units.parse_ns("0.7us") == 700
    assert 55_000 == units.parse_ppm("5.5%") == units.parse_ppm(0.055) == units.parse_ppm("0.055")


def test_the_exponent_that_yaml_takes_for_text_is_a_number() -> None:
    """1e9 is a thousand million in every spelling."""
    assert 10**9 == units.parse_bytes_per_s("1e9 B/s") == units.parse_bytes_per_s("1.0E+9B/s")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("24", ["'24' has no unit", "24GiB"]),
        (24, ["'24' has no unit", "GiB"]),
        ("24gib", ["unknown unit 'gib'", "'24gib'", "GiB"]),
        ("24Gb", ["unknown unit 'Gb'", "did you mean 'GB'?"]),
        ("24 GB/s", ["unknown unit 'GB/s'"]),
        ("many", ["got 'many'", "24GiB"]),
        ("", ["got ''"]),
        ("-1GiB", ["not below 0", "'-1GiB'"]),
        ("nan GiB", ["got 'nan GiB'"]),
        ("1e999999999B", ["unknown unit", "'1e999999999B'"]),
        (None, ["got None"]),
        (True, ["got True"]),
        (["24GiB"], ["got ['24GiB']"]),
    ],
)
def test_what_is_no_quantity_is_refused_with_value_and_way_out(
    text: object, fragments: list[str]
) -> None:
    """The error names what was written and what would do, in one line."""
    with pytest.raises(ProfileError) as error:
        units.parse_bytes(text)
    message = str(error.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message


@given(size=st.integers(min_value=0, max_value=2**60))
def test_plain_bytes_survive_exactly(size: int) -> None:
    """No float comes between the text and the integer."""
    assert size == units.parse_bytes(f"{size}B")


@given(time=st.integers(min_value=0, max_value=2**60))
def test_formatted_times_read_back_within_their_one_decimal(time: int) -> None:
    """What a report prints is what the parser reads, to the printed precision."""
    back = units.parse_ns(units.format_ns(time))
    assert abs(back - time) <= max(1, time // 10)


def test_formats_are_short() -> None:
    """Whole numbers have no decimals."""
    assert units.format_bytes(24 * 2**30) == "24GiB"
    assert units.format_bytes(512) == "512B"
    assert units.format_bytes_per_s(54_900_000_000) == "54.9 GB/s"
    assert units.format_flop_per_s(330_300_000_000_000) == "330.3 TFLOP/s"
    assert units.format_ns(10**9) == "1 s"
    assert units.format_ppm(55_000) == "5.5%"
