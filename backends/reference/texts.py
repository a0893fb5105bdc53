"""Texts with an open licence, parted by task and by document into training and held-out halves.

A folder of texts has a ``manifest.json`` (file, domain, licence, ``open_licence``) and the files it
names, ``*.txt.xz``. Only files marked ``open_licence`` are read. Whole documents are held out, and
then every line of 40 bytes or more that occurs in a held-out document is dropped from training: the
sources quote each other and themselves.
"""

import hashlib
import json
import lzma
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
NUMBERED_PROMPT = re.compile(r"(?:^|\n)\d+\n(?=User:)")


@dataclass(frozen=True)
class Split:
    """Documents by task, in an order that the seed decides.

    Attributes:
        train: What the model may learn from; no document twice, no long line of ``held_out``.
        held_out: Whole documents, as they are.
        source_sha256: Hash of each packed file read, by name.
    """

    train: Mapping[str, Sequence[bytes]]
    held_out: Mapping[str, Sequence[bytes]]
    source_sha256: Mapping[str, str]


def read_split(folders: Iterable[Path], seed: int) -> Split:
    """Read the openly licensed files of the folders and part their documents.

    Raises:
        ValueError: A folder has no manifest, or a domain has no task name.
    """
    documents: dict[str, list[bytes]] = {}
    hashes: dict[str, str] = {}
    seen: set[bytes] = set()
    for folder in folders:
        manifest = folder / "manifest.json"
        if not manifest.is_file():
            raise ValueError(f"{manifest}: no such file; give a folder of texts with a manifest")
        for entry in json.loads(manifest.read_text()):
            if not entry["open_licence"]:
                continue
            if entry["domain"] not in TASK_OF_DOMAIN:
                raise ValueError(f"{manifest}: no task name for the domain {entry['domain']!r}")
            packed = (folder / entry["file"]).read_bytes()
            hashes[entry["file"]] = hashlib.sha256(packed).hexdigest()
            of_task = documents.setdefault(TASK_OF_DOMAIN[entry["domain"]], [])
            for document in split_documents(lzma.decompress(packed).decode()):
                key = hashlib.sha256(b" ".join(document.split())).digest()
                if key not in seen:
                    seen.add(key)
                    of_task.append(document)
    return _hold_out(documents, hashes, np.random.default_rng(seed))


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
    rng: np.random.Generator,
) -> Split:
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
    return Split(train, held_out, dict(hashes))


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
