"""The results of a sweep on disk: one row for each run that is done, whatever happens meanwhile.

A row is appended by one write once its run is done, so a kill leaves whole rows and at most one cut
off, which the next sweep into the file removes. One sweep at a time writes to a file. When all is
done the rows are put into the order of the sweep: the file then does not tell how it came about.
"""

import csv
import fcntl
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from moesim.simulator.errors import InputError
from moesim.simulator.results.rows import FIELDS, Row, check_csv

ERROR_COLUMNS = ("run_id", "error", "options")


class SweepResults:
    """The file of rows and, beside it, that of errors; held by one sweep while it is open.

    Args:
        path: The CSV; errors go to ``NAME.errors.csv``, which is there only if there are any.

    Raises:
        InputError: The file is not one of ours, cannot be written, or another sweep writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors_path = path.with_suffix(".errors.csv")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        try:
            self._hold()
            self._mend()
            check_csv(path)
            self._rows = self._read()
        except BaseException:
            os.close(self._file)
            raise
        self.done = set(self._rows)
        self.errors_path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def add(self, row: Row) -> None:
        """Append the row of a run that is done.

        Raises:
            InputError: The disk is full, say; the row is not there, or is cut off and will be
                removed.
        """
        line = _line(["" if value is None else value for value in row.values()])
        self._append(line if os.fstat(self._file).st_size else _line(FIELDS) + line)
        self._rows[row["run_id"]] = line
        self.done.add(row["run_id"])

    def add_error(self, run_id: str, error: str, options: Mapping[str, Any]) -> None:
        """Note a run that failed."""
        line = _line([run_id, error, json.dumps(options, ensure_ascii=False, sort_keys=True)])
        is_new = not self.errors_path.exists()
        with self.errors_path.open("a", encoding="utf-8") as file:
            file.write(_line(ERROR_COLUMNS) + line if is_new else line)

    def put_in_order(self, run_ids: Iterable[str]) -> None:
        """Order the rows of the runs given; rows of others stay before them."""
        ours = [run_id for run_id in dict.fromkeys(run_ids) if run_id in self._rows]
        others = [run_id for run_id in self._rows if run_id not in set(ours)]
        order = [*others, *ours]
        if order == list(self._rows):
            return
        draft = self.path.with_name(f".{self.path.name}.draft")
        text = _line(FIELDS) + "".join(self._rows[run_id] for run_id in order)
        draft.write_text(text, encoding="utf-8")
        draft.replace(self.path)

    def _hold(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{self.path}: another sweep writes to it; wait for its end or name another file"
            ) from None

    def _mend(self) -> None:
        """Remove a row that a kill has cut off: what follows the last line's end."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        header = _line(FIELDS).encode()
        if whole < len(content) and (content.startswith(header) or header.startswith(content)):
            os.ftruncate(self._file, whole)

    def _read(self) -> dict[str, str]:
        with self.path.open(encoding="utf-8", newline="") as file:
            lines = csv.DictReader(file)
            return {row["run_id"]: _line(list(row.values())) for row in lines}

    def _append(self, text: str) -> None:
        content = text.encode()
        try:
            written = os.write(self._file, content)
            os.fsync(self._file)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}") from None
        if written < len(content):
            raise InputError(f"{self.path}: the disk took {written} of {len(content)} bytes")


def _line(values: Sequence[Any] | Mapping[str, Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
