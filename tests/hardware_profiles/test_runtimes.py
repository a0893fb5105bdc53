"""Runtime files: what software adds, each figure with its evidence."""

from pathlib import Path

import pytest

from moesim.hardware_profiles import ProfileError, load_runtime, runtime_names
from moesim.hardware_profiles.files import parse_tree, validated
from moesim.hardware_profiles.runtime_schema import FOLDER, RuntimeProfile, runtime_json_schema


def test_the_runtimes_asked_for_ship() -> None:
    """Five kinds of software can be compared."""
    assert runtime_names() == [
        "accelerate",
        "hf-eager",
        "layer-streamer",
        "moe-infinity-oss",
        "moesim-graph",
    ]


@pytest.mark.parametrize("name", runtime_names())
def test_a_shipped_runtime_says_how_sure_it_is(name: str) -> None:
    """Our own runtime was measured by the protocol; the others are estimates with bands."""
    runtime = load_runtime(name)
    figures = dict(runtime.figures())
    expected = "measured" if name == "moesim-graph" else "estimated"
    others = {key for key, figure in figures.items() if figure.evidence != expected}
    assert others <= {"kernels.look_ahead", "kernels.expert_after_copy", "copying.overhead"}
    unsure = {key for key, figure in figures.items() if figure.band_ppm > 0}
    assert figures.keys() - unsure <= {"memory.workspace"}
    used = {figure.source for figure in figures.values()}
    assert [key for key, item in runtime.sources.items() if item.source not in used] == []


def test_accelerate_copies_pageable_memory_and_waits() -> None:
    """Its hook blocks the host, and it computes no experts on the CPU."""
    runtime = load_runtime("accelerate")
    assert runtime.copying.source == "pageable"
    assert runtime.copying.blocking
    assert runtime.cpu_experts is None


def test_an_unknown_runtime_lists_those_that_exist() -> None:
    """The names are in the message, the closest first."""
    with pytest.raises(ProfileError, match=r"no runtime 'hf-eagr'; there are \['hf-eager'"):
        load_runtime("hf-eagr")


def test_a_row_of_decision_costs_belongs_to_a_system(tmp_path: Path) -> None:
    """A runtime may know what each system's decisions cost."""
    text = (FOLDER / "hf-eager.yaml").read_text(encoding="utf-8")
    costs = "{base: [1us, guess], per_expert: [2us, guess], per_command: [3us, guess]}"
    row = f"  systems:\n    lru: {costs}\n"
    path = tmp_path / "hf-eager.yaml"
    path.write_text(text.replace("\nmemory:", f"{row}\nmemory:"), encoding="utf-8")
    assert load_runtime(path).decisions.systems["lru"].per_expert.value == 2_000


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("source: pinned", "source: fast", "copying.source: input should be 'pinned' or"),
        ("blocking: no", "blocking: maybe", "copying.blocking: input should be a valid boolean"),
        ("dense_multiple: [1.3,", "dense_multiple: [0.3,", "kernels.dense_multiple: input should"),
        ("router: [20us,", "router: [20,", "wait.router: '20' has no unit"),
        ("  place: host", "  plaice: host", "decisions.plaice: unknown key; did you mean 'place'?"),
        ("    base: [6us", "    bass: [6us", "decisions.default.bass: unknown key; did you mean"),
    ],
)
def test_a_planted_fault_names_file_and_key(old: str, new: str, expected: str) -> None:
    """Each faulty key has its line."""
    text = (FOLDER / "hf-eager.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(ProfileError) as error:
        validated(parse_tree(text.replace(old, new, 1)), RuntimeProfile, "mine.yaml")
    lines = str(error.value).splitlines()
    assert sum(line.startswith(f"mine.yaml: {expected}") for line in lines) == 1


def test_a_runtime_has_a_json_schema() -> None:
    """Editors can complete the file."""
    assert "copying" in runtime_json_schema()["properties"]
