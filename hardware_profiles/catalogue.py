"""The machines that ship, and anybody's own: list, load, check."""

from pathlib import Path

from moesim.hardware_profiles.files import find, names_in, read
from moesim.hardware_profiles.schema import HardwareProfile

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of the machines that ship."""
    return names_in(FOLDER)


def load(name_or_path: str | Path) -> HardwareProfile:
    """Return the machine of that name, or the one in that file.

    Raises:
        ProfileError: If there is none (the names are listed) or the file is faulty.
    """
    return read(find(name_or_path, FOLDER, "hardware profile"), HardwareProfile)


def check(path: str | Path) -> HardwareProfile:
    """Return the machine in `path` if the file has no fault.

    Raises:
        ProfileError: With one line per fault: file, key, what was expected, what was found.
    """
    return read(find(Path(path).resolve(), FOLDER, "hardware profile"), HardwareProfile)
