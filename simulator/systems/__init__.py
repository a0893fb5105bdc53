"""Systems: published bundles of policies, each a YAML file that says where it departs from them.

A file names a policy spec for each axis, as on the command line, so that a system is no code.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from moesim.hardware_profiles import ProfileError, load_runtime
from moesim.hardware_profiles.figures import NamedFile
from moesim.hardware_profiles.files import SUFFIXES, find, names_in, read
from moesim.simulator import registry
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.registry import Axis

__all__ = ["System", "load", "names"]

FOLDER = Path(__file__).parent


def _policy(axis: Axis) -> Any:  # noqa: ANN401  a validator, as pydantic types it
    def check(text: str) -> str:
        registry.parse(axis, text)
        return text

    return AfterValidator(check)


def _known_runtime(name: str) -> str:
    load_runtime(name)
    return name


class System(NamedFile):
    """A bundle of policies.

    Attributes:
        description: One line for the listing.
        paper: Where the system is described, and which code was read.
        cache: Spec of its cache policy; the other two axes likewise.
        runtime: Runtime profile that it comes with, if one fits it better than the default.
        staging: How it uses staging room, in words.
        departures: Where this bundle differs from what it is named after, one line each.
        engine: The engine that has these flags, and the version in which they were read.
        engine_flags: What to set in the real engine for a fair comparison, and to what.
    """

    description: str = Field(min_length=3)
    paper: str = Field(min_length=3)
    cache: Annotated[str, _policy("cache")]
    prefetch: Annotated[str, _policy("prefetch")]
    schedule: Annotated[str, _policy("schedule")]
    runtime: Annotated[str, AfterValidator(_known_runtime)] | None = None
    staging: str = ""
    departures: list[str] = Field(default_factory=list)
    engine: str = ""
    engine_flags: dict[str, str] = Field(default_factory=dict)


def names() -> list[str]:
    """Return the names of the systems that ship."""
    return names_in(FOLDER)


def load(name_or_path: str | Path) -> System:
    """Return the system of that name, or the one in that YAML file.

    Raises:
        UnknownNameError: There is no such system; the names are listed.
        InputError: The file is missing or faulty, or names a policy or option that does not exist.
    """
    path = Path(name_or_path)
    is_name = path.suffix not in SUFFIXES and len(path.parts) == 1
    if is_name and str(name_or_path) not in names():
        raise UnknownNameError("system", str(name_or_path), names())
    try:
        return read(find(name_or_path, FOLDER, "system"), System)
    except ProfileError as error:
        raise InputError(str(error)) from error
