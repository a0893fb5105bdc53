"""What is written is whole and valid, or is not there."""

from pathlib import Path

import pytest

from moesim.hardware_profiles import load, load_runtime
from moesim.hardware_profiles.catalogue import FOLDER
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.files import read_tree
from moesim.hardware_profiles.writing import replacing, write_machine, write_runtime


def test_a_file_is_replaced_only_if_all_went_well(tmp_path: Path) -> None:
    """After a failure the old content stands, and no draft lies about."""
    path = tmp_path / "figures.json"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    with replacing(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.json"]


def test_profiles_take_the_name_of_their_file(tmp_path: Path) -> None:
    """What was written under another name is read as the file's."""
    write_machine(read_tree(FOLDER / "rtx4090.yaml"), tmp_path / "mine.yaml")
    assert load(tmp_path / "mine.yaml").name == "mine"
    runtime = read_tree(FOLDER / "runtimes" / "hf-eager.yaml")
    write_runtime(runtime, tmp_path / "ours.yaml")
    assert load_runtime(tmp_path / "ours.yaml").name == "ours"


def test_a_profile_that_cannot_be_is_not_written(tmp_path: Path) -> None:
    """A wrong figure, or a folder that is not there, is one line."""
    tree = read_tree(FOLDER / "rtx4090.yaml")
    with pytest.raises(ProfileError, match="bad.yaml: gpu"):
        write_machine({**tree, "gpu": {}}, tmp_path / "bad.yaml")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ProfileError, match="mine.yaml: cannot be written: No such file"):
        write_machine(tree, tmp_path / "none" / "mine.yaml")
