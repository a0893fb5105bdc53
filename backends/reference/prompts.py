"""Choose held-out pieces of several tasks as a prompts file for ``moesim record``.

``python -m moesim.backends.reference.prompts CORPORA... -o FILE.jsonl`` with the texts of a model's
training: it parts the documents in the same way, so that every prompt comes from a document that
the model has not seen.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from moesim.backends.reference.report import WEIGHTS
from moesim.backends.reference.texts import read_split_of

PROMPT_BYTES = (36, 97)
LINE_STARTS = 400


def choose_prompts(
    held_out: Mapping[str, Sequence[bytes]], tasks: Sequence[str], each: int, seed: int
) -> list[dict[str, str]]:
    """Return pieces of held-out documents, the tasks in turns.

    Each begins at a line of a document of its own (where a task has too few, of any), which leaves
    room for 400 more bytes, and is between 33 and 96 bytes long, cut between characters.

    Raises:
        ValueError: A task has no long document.
    """
    rng = np.random.default_rng(seed)
    by_task = {}
    for task in tasks:
        long_enough = [text for text in held_out.get(task, ()) if len(text) >= LINE_STARTS]
        if not long_enough:
            raise ValueError(f"task {task!r}: no held-out document is long enough")
        few = len(long_enough) < each
        picked = rng.choice(len(long_enough), size=each, replace=few)
        by_task[task] = [_piece(long_enough[index], rng) for index in picked]
    return [{"prompt": by_task[task][turn], "task": task} for turn in range(each) for task in tasks]


def _piece(document: bytes, rng: np.random.Generator) -> str:
    last = max(1, len(document) - LINE_STARTS)
    start = document.find(b"\n", int(rng.integers(last)), last) + 1
    return document[start : start + int(rng.integers(*PROMPT_BYTES))].decode(errors="ignore")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tasks", default="python,metamath,dialogue,go,intent")
    parser.add_argument("--each", type=int, default=3, help="prompts of a task")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="folder of its weights")
    options = parser.parse_args()
    try:
        split = read_split_of(options.model, options.corpora)
        prompts = choose_prompts(split.held_out, options.tasks.split(","), options.each, split.seed)
    except ValueError as error:
        parser.error(str(error))
    lines = [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
