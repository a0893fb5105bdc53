"""Draws one run as one figure, in a light and a dark variant.

Everything drawn is in a `RunSeries`; `series_of` takes it from a run. matplotlib is imported where
it draws, and without its global state: no window, style or figure outlives a call, and the user's
own settings do not enter. Equal runs give equal files.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from moesim.hardware_profiles.writing import replacing
from moesim.simulator.errors import InputError
from moesim.simulator.results.plot_panels import THEMES, fill, style
from moesim.simulator.results.run_series import RunSeries, series_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moesim.simulator.results.run_result import RunResult

__all__ = ["RunSeries", "draw", "plot_run", "save", "series_of"]

FORMATS = ("png", "svg", "pdf")
SIZE_IN = (10, 7.4)


class Paint(Protocol):
    """Fills an empty figure, in the colours of a theme."""

    def __call__(self, figure: "Figure", /, *, theme: Mapping[str, str]) -> None:
        """Paint."""


def plot_run(result: "RunResult", path: Path, *, dark: bool = False) -> None:
    """Draw a run into a file; see `draw`."""
    draw(series_of(result), path, dark=dark)


def check_suffix(path: Path) -> str:
    """Return the format that a path's suffix names.

    Raises:
        InputError: It is none that can be drawn.
    """
    file_format = path.suffix.removeprefix(".").lower()
    if file_format not in FORMATS:
        raise InputError(f"{path}: a plot ends in one of {', '.join('.' + f for f in FORMATS)}")
    return file_format


def draw(series: RunSeries, path: Path, *, dark: bool = False) -> None:
    """Draw a run into a file, whole or not at all.

    Args:
        series: What to show.
        path: Its suffix is the format: .png, .svg or .pdf.
        dark: Whether the paper is dark.

    Raises:
        InputError: The format is not one of those, the place cannot be written, or matplotlib is
            not installed.
    """
    save(partial(fill, series=series), path, dark=dark)


def save(
    paint: Paint, path: Path, *, dark: bool = False, size_in: tuple[float, float] = SIZE_IN
) -> None:
    """Draw whatever ``paint`` paints into a file, on paper of so many inches; see `draw`."""
    file_format = check_suffix(path)
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra, and slow to import
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError:
        raise InputError(
            f"{path}: plots need matplotlib; run: pip install 'moesim[validation]'"
        ) from None
    # What identifies a file is what is in it, not when and by which version it was made.
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(style(THEMES[dark]))
        figure = Figure(figsize=size_in, layout="constrained")
        paint(figure, theme=THEMES[dark])
        try:
            with replacing(path) as draft:
                figure.savefig(draft, format=file_format, dpi=150, metadata=undated[file_format])
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
