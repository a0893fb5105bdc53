"""Texts with an open licence, parted by task and by document into training and held-out halves.

A folder of texts has a ``manifest.json`` (file, domain, licence, ``open_licence``) and the files it
names, ``*.txt.xz``. Only files marked ``open_licence`` are read. Whole documents are held out, and
then every line of 40 bytes or more that occurs in a held-out document is dropped from training: the
sources quote each other and themselves.

The same texts and seed give the same halves, in whatever order their folders are named; with a
folder more or less they are others. Who scores a model reads them with ``read_split_of``, which
refuses any but those of its training.
"""

import hashlib
import json
import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.backends.reference.vocabulary import SEPARATOR

TASK_OF_DOMAIN = {
    "instruction task: law": "law",
    "instruction task: intent": "intent",
    "instruction task: summary": "summary",
    "instruction task: translation": "translation",
    "short Q&A dialogue": "dialogue",
    "German": "german",
    "Russian": "russian",
    "Chinese": "chinese",
    "Spanish": "spanish",
    "Italian": "italian",
    "French": "french",
    "German-English": "german_english",
    "formal mathematics": "metamath",
    "computing dictionary": "computing_dictionary",
    "English dictionary": "english_dictionary",
    "English prose": "english_prose",
    "technical English": "manual",
    "Python code": "python",
    "Go code": "go",
    "C code": "c",
}
LONG_LINE_BYTES = 40
BLOCK_BYTES = 8_192
LARGEST_DOCUMENT_BYTES = 65_536
HELD_OUT_FRACTION = 0.04
HELD_OUT_BYTES = (48_000, 200_000)
TERMINAL_COLOURS = re.compile(r"\x1b?\[[0-9;]*m")
FORTUNE_END = "\n%\n"
REPORT = "report.json"
SEED = 20_261_124
NUMBERED_PROMPT = re.compile(r"(?:^|\n)\d+\n(?=User:)")


@dataclass(frozen=True)
class Split:
    """Documents by task, in an order that the seed decides.

    Attributes:
        train: What the model may learn from; no document twice, no long line of ``held_out``.
        held_out: Whole documents, as they are.
        source_sha256: Hash of each packed file read, by name.
        seed: Of the order.
    """

    train: Mapping[str, Sequence[bytes]]
    held_out: Mapping[str, Sequence[bytes]]
    source_sha256: Mapping[str, str]
    seed: int

    def train_bytes(self) -> dict[str, int]:
        """Return the bytes that may be learned of each task, which tell one split from another."""
        return {task: sum(map(len, self.train[task])) for task in sorted(self.train)}


class Packed(NamedTuple):
    """One openly licensed file of a folder."""

    name: str
    task: str
    content: bytes
    sha256: str


def read_split_of(model: Path, folders: Iterable[Path]) -> Split:
    """Read texts and part them as they were for a model's training.

    A model without a training report beside its weights is taken at its user's word.

    Args:
        model: Folder of the weights; its report says seed and training half.
        folders: Of the texts.

    Raises:
        ValueError: As ``read_split`` and ``check_learned`` do.
    """
    report = model / REPORT
    if not report.is_file():
        return read_split(folders, SEED)
    made = json.loads(report.read_text(encoding="utf-8"))["provenance"]
    split = read_split(folders, made["seed"])
    check_learned(split, made["train_bytes"], report)
    return split


def check_learned(split: Split, train_bytes: Mapping[str, int], report: Path) -> None:
    """Refuse texts that are parted otherwise than in a training: what it learned may be scored.

    Args:
        split: The texts as they are parted now.
        train_bytes: Of each task, what was learned.
        report: Of the training.

    Raises:
        ValueError: A task has another training half.
    """
    ours = split.train_bytes()
    for task, trained in train_bytes.items():
        if ours.get(task, 0) != trained:
            raise ValueError(
                f"{report}: task {task} was trained on {trained} bytes, these folders leave "
                f"{ours.get(task, 0)}; give all folders of that training and no other"
            )


def read_split(folders: Iterable[Path], seed: int) -> Split:
    """Read the openly licensed files of the folders and part their documents.

    Folders are read in the order of their files' hashes: which documents are held out depends on
    the order in which all are read.

    Raises:
        ValueError: A folder has no manifest, or a domain has no task name.
    """
    documents: dict[str, list[bytes]] = {}
    hashes: dict[str, str] = {}
    seen: set[bytes] = set()
    by_content = sorted(
        map(_read_folder, folders), key=lambda files: sorted(file.sha256 for file in files)
    )
    for file in chain.from_iterable(by_content):
        hashes[file.name] = file.sha256
        of_task = documents.setdefault(file.task, [])
        for document in split_documents(lzma.decompress(file.content).decode()):
            key = hashlib.sha256(b" ".join(document.split())).digest()
            if key not in seen:
                seen.add(key)
                of_task.append(document)
    return _hold_out(documents, hashes, seed)


def _read_folder(folder: Path) -> list[Packed]:
    """Return the openly licensed files in the order of the manifest."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise ValueError(f"{manifest}: no such file; give a folder of texts with a manifest")
    files = []
    for entry in json.loads(manifest.read_text()):
        if not entry["open_licence"]:
            continue
        if entry["domain"] not in TASK_OF_DOMAIN:
            raise ValueError(f"{manifest}: no task name for the domain {entry['domain']!r}")
        content = (folder / entry["file"]).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        files.append(Packed(entry["file"], TASK_OF_DOMAIN[entry["domain"]], content, sha256))
    return files


def split_documents(text: str) -> list[bytes]:
    """Return the documents of one file, parted as its kind is.

    Form feeds, fortune marks and numbered prompts part documents. What is still long, or has no
    such marks, is cut at blank lines into pieces of about 8 KiB.
    """
    text = TERMINAL_COLOURS.sub("", text)
    if "\f" in text:
        parts = text.split("\f")
    elif text.count(FORTUNE_END) > len(text) / 20_000:
        parts = text.split(FORTUNE_END)
    else:
        parts = NUMBERED_PROMPT.split(text)
    documents: list[bytes] = []
    for part in parts:
        whole = part.strip().encode()
        if len(whole) > LARGEST_DOCUMENT_BYTES:
            documents.extend(_blocks(whole))
        elif whole:
            documents.append(whole)
    return documents


def _blocks(text: bytes) -> Iterable[bytes]:
    start = 0
    while start < len(text):
        blank = text.find(b"\n\n", start + BLOCK_BYTES, start + 2 * BLOCK_BYTES)
        newline = text.find(b"\n", start + BLOCK_BYTES)
        cut = blank if blank >= 0 else newline if newline >= 0 else len(text)
        block = text[start:cut].strip()
        if block:
            yield block
        start = cut + 1


def _hold_out(
    documents: Mapping[str, Sequence[bytes]],
    hashes: Mapping[str, str],
    seed: int,
) -> Split:
    rng = np.random.default_rng(seed)
    train: dict[str, list[bytes]] = {}
    held_out: dict[str, list[bytes]] = {}
    for task in sorted(documents):
        of_task = [documents[task][index] for index in rng.permutation(len(documents[task]))]
        size_bytes = sum(map(len, of_task))
        wanted_bytes = np.clip(size_bytes * HELD_OUT_FRACTION, *HELD_OUT_BYTES)
        reached_bytes = np.cumsum([len(document) for document in of_task])
        count = int(np.searchsorted(reached_bytes, wanted_bytes)) + 1
        held_out[task], train[task] = of_task[:count], of_task[count:]
    forbidden = {
        line.strip()
        for of_task in held_out.values()
        for document in of_task
        for line in document.split(b"\n")
        if len(line.strip()) >= LONG_LINE_BYTES
    }
    for task, of_task in train.items():
        cleaned = (
            b"\n".join(line for line in document.split(b"\n") if line.strip() not in forbidden)
            for document in of_task
        )
        train[task] = [document for document in cleaned if document.strip()]
    return Split(train, held_out, dict(hashes), seed)


def pack_rows(
    documents: Sequence[bytes], row_tokens: int, rng: np.random.Generator | None = None
) -> NDArray[np.uint16]:
    """Return the documents as token rows, a separator before each.

    Args:
        documents: At least one; their order is shuffled if there is an rng.
        row_tokens: Tokens of a row; each row begins with the last token of the row before it, so
            that every token but the first is predicted once. The rest at the end is dropped.
        rng: Shuffles the documents.

    Returns:
        rows: uint16 [rows, row_tokens].
    """
    order = range(len(documents)) if rng is None else rng.permutation(len(documents))
    pieces = []
    for index in order:
        pieces.append(np.array([SEPARATOR], dtype=np.uint16))
        pieces.append(np.frombuffer(documents[index], dtype=np.uint8).astype(np.uint16))
    tokens = np.concatenate(pieces)
    stride = row_tokens - 1
    count = (len(tokens) - 1) // stride
    starts = np.arange(count)[:, None] * stride
    rows: NDArray[np.uint16] = tokens[starts + np.arange(row_tokens)]
    return rows


def share_rows(
    available: Mapping[str, int], wanted: int, most_epochs: float, power: float
) -> dict[str, int]:
    """Say how many rows each task gives to training.

    Shares are proportional to the size to the given power, which lifts small tasks; no task is
    read more than ``most_epochs`` times, and what it can't give the others do.

    Returns:
        rows: By task; their sum is ``wanted``, or less where the texts don't hold so much.
    """
    most = {task: int(rows * most_epochs) for task, rows in available.items()}
    weight = {task: float(rows) ** power for task, rows in available.items()}
    given: dict[str, int] = {}
    free = sorted(available)
    left = min(wanted, sum(most.values()))
    while free:
        scale = left / sum(weight[task] for task in free)
        full = [task for task in free if weight[task] * scale >= most[task]]
        for task in full or free:
            given[task] = most[task] if full else int(weight[task] * scale)
        left -= sum(given[task] for task in full)
        free = [task for task in free if task not in given]
    return given
