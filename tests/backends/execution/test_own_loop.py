"""The example of a loop that is not ours runs, and its comparison can fail."""

import subprocess
import sys
from pathlib import Path

MOST_LINES = 80


def test_a_loop_that_is_not_ours_decides_as_a_replay(repository: Path) -> None:
    """The example is short, ends well, and prints how many decisions were compared."""
    example = repository / "examples" / "own_loop.py"
    assert len(example.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, check=True
    )
    decisions = int(done.stdout.split(maxsplit=1)[0])
    assert decisions > 1_000
    assert "all equal" in done.stdout


def test_a_loop_that_reports_other_routes_is_caught(repository: Path, tmp_path: Path) -> None:
    """Where the loop keeps other routes than it reported, the comparison fails."""
    text = (repository / "examples" / "own_loop.py").read_text(encoding="utf-8")
    broken = text.replace("routes.append(chosen)", "routes.append((chosen + step) % EXPERTS)")
    assert text != broken
    copy = tmp_path / "own_loop.py"
    copy.write_text(broken, encoding="utf-8")
    done = subprocess.run([sys.executable, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr
