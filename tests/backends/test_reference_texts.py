"""The reference model's texts: nothing held out is learned, and small tasks get their share."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from moesim.backends.reference import prompts as prompts_module
from moesim.backends.reference.gather import SOURCES, newest
from moesim.backends.reference.prompts import choose_prompts
from moesim.backends.reference.texts import (
    pack_rows,
    read_split,
    read_split_of,
    share_rows,
    split_documents,
)
from moesim.backends.reference.vocabulary import SEPARATOR, byte_characters

QUOTED = "this sentence is quoted in very many of the documents of the corpus"


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    """Return a folder of two open files and one that is not."""
    rng = np.random.default_rng(0)

    def document(number: int) -> str:
        words = " ".join(str(word) for word in rng.integers(0, 10**9, size=40))
        quote = QUOTED if number % 3 == 0 else "-"
        return f"document {number}\n{words[:200]}\n{quote}\n{words[200:]}"

    manifest = []
    for name, domain, is_open in (
        ("a", "Python code", True),
        ("b", "German", True),
        ("c", "French", False),
    ):
        text = "\f".join(document(number) for number in range(600))
        (tmp_path / f"{name}.txt.xz").write_bytes(lzma.compress(text.encode()))
        manifest.append({"file": f"{name}.txt.xz", "domain": domain, "open_licence": is_open})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_texts_without_an_open_licence_are_not_read(corpora: Path) -> None:
    """The manifest decides, and the hashes name only what was read."""
    split = read_split([corpora], seed=1)
    assert {"python", "german"} == set(split.train)
    assert {"a.txt.xz", "b.txt.xz"} == set(split.source_sha256)


def test_no_long_line_that_is_held_out_is_learned(corpora: Path) -> None:
    """Lines of 40 bytes or more of held-out documents are gone from training, short ones stay."""
    split = read_split([corpora], seed=1)
    held_out = {
        line.strip()
        for documents in split.held_out.values()
        for document in documents
        for line in document.split(b"\n")
    }
    learned = {
        line.strip()
        for documents in split.train.values()
        for document in documents
        for line in document.split(b"\n")
    }
    assert QUOTED.encode() in held_out
    assert [line for line in learned & held_out if len(line) >= 40] == []
    assert b"-" in learned & held_out


def test_a_document_is_learned_or_held_out(corpora: Path) -> None:
    """Every document is on one side, each once, and the seed decides which."""
    split = read_split([corpora], seed=1)
    for task in ("python", "german"):
        first_lines = [
            document.partition(b"\n")[0]
            for documents in (split.train[task], split.held_out[task])
            for document in documents
        ]
        assert 600 == len(first_lines) == len(set(first_lines))
    assert split.held_out["german"] != read_split([corpora], seed=2).held_out["german"]
    assert split.held_out["german"] == read_split([corpora], seed=1).held_out["german"]


def test_a_domain_without_a_task_is_refused(corpora: Path) -> None:
    """A new domain must be given a name first."""
    entry = {"file": "a.txt.xz", "domain": "Klingon", "open_licence": True}
    (corpora / "manifest.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="no task name for the domain 'Klingon'"):
        read_split([corpora], seed=1)


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("one\ftwo", [b"one", b"two"]),
        ("ein Spruch\n%\nnoch einer\n%\n", [b"ein Spruch", b"noch einer"]),
        ("0\nUser: a\n1\nUser: b", [b"User: a", b"User: b"]),
        ("\x1b[33mcolour\x1b[m", [b"colour"]),
    ],
)
def test_documents_are_parted_as_their_file_is(text: str, documents: list[bytes]) -> None:
    """Form feeds, fortune marks and numbered prompts part documents; colours are dropped."""
    assert documents == split_documents(text)


def test_a_long_document_is_cut_at_blank_lines() -> None:
    """Nothing but white space is lost, and no piece is much longer than 8 KiB."""
    text = "\n\n".join(f"paragraph {number} " + "x" * 500 for number in range(400))
    pieces = split_documents(text)
    assert text.split() == b" ".join(pieces).decode().split()
    assert max(map(len, pieces)) < 9_000


def test_rows_predict_every_token_once() -> None:
    """Each row begins with the last token of the one before."""
    rows = pack_rows([bytes(range(10)), bytes(range(20, 35))], row_tokens=9)
    assert rows.shape == (3, 9)
    joined = [int(rows[0, 0]), *rows[:, 1:].ravel().tolist()]
    assert [SEPARATOR, *range(10), SEPARATOR, *range(20, 33)] == joined


def test_no_task_is_read_too_often_and_the_sum_is_kept() -> None:
    """A small task is capped at its epochs; the others take what it can't give."""
    given = share_rows({"small": 10, "large": 1_000}, wanted=900, most_epochs=4.0, power=0.5)
    assert given == {"small": 40, "large": 860}
    assert share_rows({"small": 10, "large": 1_000}, wanted=10**6, most_epochs=4.0, power=0.5) == {
        "small": 40,
        "large": 4_000,
    }


def another(corpora: Path, folder: Path) -> Path:
    """Return a second folder, with other texts of a task that the first has too."""
    folder.mkdir()
    packed = lzma.decompress((corpora / "a.txt.xz").read_bytes()).replace(b"document", b"text")
    (folder / "d.txt.xz").write_bytes(lzma.compress(packed))
    entry = {"file": "d.txt.xz", "domain": "Python code", "open_licence": True}
    (folder / "manifest.json").write_text(json.dumps([entry]))
    return folder


def trained_on(folders: list[Path], model: Path) -> Path:
    """Return a model's folder with the report of a training on these texts."""
    split = read_split(folders, seed=3)
    made = {"seed": 3, "train_bytes": split.train_bytes()}
    model.mkdir()
    (model / "report.json").write_text(json.dumps({"provenance": made}))
    return model


def test_the_order_of_folders_says_nothing(corpora: Path, tmp_path: Path) -> None:
    """The same texts are parted alike in whatever order and under whatever name they are given."""
    other = another(corpora, tmp_path / "other")
    found = read_split([corpora, other], seed=1)
    assert found == read_split([other, corpora], seed=1)
    assert found == read_split([corpora, other.rename(tmp_path / "0")], seed=1)
    assert found.held_out["python"] != read_split([corpora], seed=1).held_out["python"]


def test_a_model_is_asked_what_it_has_not_learned(corpora: Path, tmp_path: Path) -> None:
    """Texts are parted with the training's seed; a folder more or less is refused."""
    other = another(corpora, tmp_path / "other")
    model = trained_on([corpora, other], tmp_path / "model")
    assert read_split_of(model, [other, corpora]) == read_split([corpora, other], seed=3)
    with pytest.raises(ValueError, match="give all folders of that training and no other"):
        read_split_of(model, [corpora])
    alone = trained_on([corpora], tmp_path / "alone")
    with pytest.raises(ValueError, match="report.json: task python was trained on"):
        read_split_of(alone, [corpora, other])


def test_prompts_for_a_model_are_held_out_from_its_training(
    corpora: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command parts the texts as the model's report says, and writes nothing for others."""
    model = trained_on([corpora], tmp_path / "model")
    output = tmp_path / "prompts.jsonl"
    words = ["-o", str(output), "--tasks", "german", "--model", str(model)]
    monkeypatch.setattr("sys.argv", ["prompts", str(corpora), *words])
    prompts_module.main()
    held_out = read_split([corpora], seed=3).held_out["german"]
    texts = [json.loads(line)["prompt"].encode() for line in output.read_text().splitlines()]
    assert [any(text in document for document in held_out) for text in texts] == [True] * 3
    output.unlink()
    other = another(corpora, tmp_path / "other")
    monkeypatch.setattr("sys.argv", ["prompts", str(corpora), str(other), *words])
    with pytest.raises(SystemExit):
        prompts_module.main()
    assert "give all folders of that training" in capsys.readouterr().err
    assert not output.exists()


def test_prompts_are_pieces_of_held_out_documents(corpora: Path) -> None:
    """Each is a piece of a document of its own, between 33 and 96 bytes, the tasks in turns."""
    held_out = read_split([corpora], seed=1).held_out
    prompts = choose_prompts(held_out, ["python", "german"], each=4, seed=7)
    assert [prompt["task"] for prompt in prompts] == ["python", "german"] * 4
    for prompt in prompts:
        text = prompt["prompt"].encode()
        assert 33 <= len(text) <= 96
        assert any(text in document for document in held_out[prompt["task"]])
    with pytest.raises(ValueError, match="task 'go': no held-out document"):
        choose_prompts(held_out, ["go"], each=1, seed=7)


def test_every_byte_has_a_character_of_its_own() -> None:
    """The byte-level alphabet is a bijection."""
    assert len(set(byte_characters())) == 256


def test_the_newest_package_is_the_one_of_the_highest_numbers() -> None:
    """Numbers count as numbers, other flavours do not match, and no match is said in one line."""
    names = ["h-6.1.0-9-common", "h-6.1.0-56-common", "h-6.12.7+deb12-common", "h-7-common-rt"]
    assert newest(names, "h-6.1.0-*-common") == "h-6.1.0-56-common"
    assert newest(names, "h-*-common") == "h-6.12.7+deb12-common"
    with pytest.raises(ValueError, match="no package matches g-"):
        newest(names, "g-*-common")


def test_every_source_names_its_licence_in_the_readme(repository: Path) -> None:
    """What is gathered, and what it is licensed as, stands in the reference model's README."""
    readme = (repository / "backends" / "reference" / "README.md").read_text()
    for source in SOURCES:
        assert any(
            f"`{source.package}`" in line and source.licence in line for line in readme.splitlines()
        ), source.name
