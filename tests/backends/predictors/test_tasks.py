"""Which task a prompt belongs to."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from moesim.backends.predictors import tasks

COOKING = ["stir the soup and add salt", "bake the bread with salt", "add butter, stir, bake"]
SAILING = ["hoist the sail and tack", "tack into the wind", "the wind fills the sail, hoist it"]
FIT = [*COOKING * 3, *SAILING * 3]
LABELS = ["cooking"] * 9 + ["sailing"] * 9


def test_keywords_count_what_sets_a_task_apart() -> None:
    """Words that both tasks use decide nothing beside those that one has."""
    by = tasks.fit_keywords(FIT, LABELS)
    assert "salt" in by.words["cooking"]
    assert "salt" not in by.words["sailing"]
    assert by.label("salt and the bread") == "cooking"
    assert by.label("the wind") == "sailing"


def test_no_match_goes_to_the_task_that_is_most_common() -> None:
    """The paper says nothing of it; the choice is fixed."""
    by = tasks.fit_keywords([*FIT, *SAILING], [*LABELS, *["sailing"] * 3])
    assert by.label("1234") == "sailing"


def test_ngrams_need_no_words() -> None:
    """Parts of words are enough, and fitting twice gives the same weights."""
    one, other = (tasks.fit_ngrams(FIT, LABELS) for _ in range(2))
    assert one.label("saltbread") == "cooking"
    assert one.label("tackwind") == "sailing"
    assert np.array_equal(one.weight_FA, other.weight_FA)


def test_hashes_do_not_depend_on_the_process() -> None:
    """They are CRC-32, which for "ab" is 9E83486D, so in column 86D; a prompt has length 1."""
    feature_NF = tasks.hashed(["abc"])
    assert np.isclose(np.linalg.norm(feature_NF), 1)
    assert feature_NF[0, 0x9E83486D % tasks.FEATURES] > 0
    assert 0x9E83486D % tasks.FEATURES == 0x86D


def test_the_accuracies_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a folder of texts the command prints a line for each task and one for all."""
    manifest = []
    for name, domain, lines in (
        ("law", "instruction task: law", COOKING),
        ("go", "Go code", SAILING),
    ):
        documents = [f"{line} {number} {line}" for number in range(400) for line in lines]
        packed = lzma.compress("\f".join(documents).encode())
        (tmp_path / f"{name}.txt.xz").write_bytes(packed)
        manifest.append({"file": f"{name}.txt.xz", "domain": domain, "open_licence": True})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert tasks.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["task", "go", "law", "all"]
    assert float(lines[-1].split()[2].rstrip("%")) > 90
