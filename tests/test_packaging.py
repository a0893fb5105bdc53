"""What is installed is what is in the tree, under its installed names."""

import doctest
import importlib
import pkgutil
import tomllib
from pathlib import Path

import pytest

PARTS = ("backends", "hardware_profiles", "simulator", "traces", "validation")


def modules() -> list[str]:
    """Return the installed name of every module of moesim."""
    found = []
    for part in PARTS:
        package = importlib.import_module(f"moesim.{part}")
        found.append(package.__name__)
        found += [
            module.name
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        ]
    return found


def test_every_package_is_listed(repository: Path) -> None:
    """A folder with an ``__init__.py`` is in the wheel, and nothing else is listed."""
    listed = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        "moesim." + ".".join(path.parent.relative_to(repository).parts)
        for part in PARTS
        for path in (repository / part).rglob("__init__.py")
    }
    assert set(listed["packages"]) == on_disk


def test_every_part_is_typed(repository: Path) -> None:
    """Each top-level part carries its own ``py.typed``, as a namespace needs."""
    assert [part for part in PARTS if not (repository / part / "py.typed").is_file()] == []


@pytest.mark.parametrize("name", modules())
def test_doctests_hold(name: str) -> None:
    """The examples in docstrings print what they say."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as missing:
        pytest.skip(f"needs {missing.name}")
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_the_bare_folder_names_are_not_packages(tmp_path: Path, monkeypatch) -> None:
    """Outside the checkout ``import simulator`` finds nothing: moesim owns no common name."""
    monkeypatch.chdir(tmp_path)
    for part in PARTS:
        spec = importlib.util.find_spec(part)
        assert spec is None or "site-packages" not in str(spec.origin)
