"""What an engine's own log may look like, and what is said of one that cannot be read."""

from pathlib import Path

import numpy as np
import pytest

from moesim.simulator.errors import InputError
from moesim.simulator.fitting.engine_log import parse_columns, read_log

ROWS = "# engine 3\nstep,wall_ms,read_bytes\n1,2.5,100\n# paused\n2,1.5,0\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log of two tokens with comments."""
    path = tmp_path / "tokens.csv"
    path.write_text(ROWS)
    return path


def test_times_become_ns_and_comments_are_skipped(log: Path) -> None:
    """The unit comes from the column's name; comments may stand anywhere."""
    read = read_log(log)
    assert read.time_ns_N.tolist() == [2_500_000.0, 1_500_000.0]
    assert read.read_bytes_N is not None
    assert read.read_bytes_N.tolist() == [100.0, 0.0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    """Any column serves whose name says its unit; bytes may be missing."""
    path = tmp_path / "tokens.csv"
    path.write_text("n,gap_us\n1,7\n2,8\n")
    read = read_log(path, parse_columns("time=gap_us"))
    assert np.array_equal([7_000.0, 8_000.0], read.time_ns_N)
    assert read.read_bytes_N is None


def test_a_spreadsheets_log_is_read(tmp_path: Path) -> None:
    """A byte order mark is no part of a column's name, and a cell may hold line breaks."""
    path = tmp_path / "tokens.csv"
    path.write_text('wall_ms,note\n2.5,"two\nlines"\n\n1.5,\n', encoding="utf-8-sig")
    assert read_log(path).time_ns_N.tolist() == [2_500_000.0, 1_500_000.0]


def test_bytes_that_are_all_0_say_nothing(tmp_path: Path) -> None:
    """An engine that counts no bytes is taken as one that has no such column."""
    path = tmp_path / "tokens.csv"
    path.write_text("wall_ms,read_bytes\n2.5,0\n1.5,0\n")
    found = read_log(path)
    assert found.read_bytes_N is None
    assert found.columns == {"time": "wall_ms"}


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("step,wall_ms\n1,fast\n", "", "line 2: wall_ms is 'fast'; expected a number above 0"),
        ("step,wall_ms\n1,0\n", "", "line 2: wall_ms is '0'"),
        ("# c\nstep,wall_ms\n1\n", "", "line 3: wall_ms is 'nothing'"),
        ("wall_ms,read_bytes\n1,-4\n", "", "read_bytes is '-4'; expected a number of at least 0"),
        ("step,speed\n1,2\n", "", "no column of times .*--log-columns time=COLUMN"),
        ("step,gap\n1,2\n", "time=gap", "the name does not say its unit; end it in _s, _ms"),
        ("step,gap_ms\n1,2\n", "time=gap_us", "no column gap_us; there are step, gap_ms"),
        ("# only\n", "", "no rows below a header"),
        ('step,wall_ms\n"a\nb",2\n3,0\n', "", "line 4: wall_ms is '0'"),
        ("step,wall_ms\n1," + "9" * 200_000 + "\n", "", "line 2: field larger than"),
        ("wall_ms\n1\n", "time=wall_ms,time=wall_ms", "time is given twice"),
        ("wall_ms,b\n1,0\n", "bytes=b", "b is 0 in every row; leave it out of --log-columns"),
    ],
)
def test_a_bad_log_is_one_line(tmp_path: Path, text: str, columns: str, message: str) -> None:
    """File, line, value and way out, in one line."""
    path = tmp_path / "tokens.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_log(path, parse_columns(columns) if columns else None)
    assert str(caught.value).startswith((str(path), "--log-columns"))
    assert "\n" not in str(caught.value)


def test_an_absent_log_is_one_line(tmp_path: Path) -> None:
    """A file that is not there is told as such."""
    with pytest.raises(InputError, match="none.csv: No such file"):
        read_log(tmp_path / "none.csv")


def test_a_wrong_key_lists_the_right_ones() -> None:
    """Only time and bytes can be named."""
    with pytest.raises(InputError, match="expected time=COLUMN or bytes=COLUMN"):
        parse_columns("speed=x")
