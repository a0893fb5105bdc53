"""Which task a prompt belongs to: eMoE's keyword count, and a better classifier.

``keywords`` follows eMoE (arXiv 2503.06823 section 3.2.1): each task has a list of words profiled
beforehand, a prompt's words are looked up in every list, and most matches win. The paper gives no
list and no rule for a tie: here a list holds the words whose share in the task most exceeds their
share elsewhere, and a tie goes to the task that is most common. ``ngrams`` is a logistic
regression on hashed character n-grams; it needs neither words nor spaces.

``python -m moesim.backends.predictors.tasks CORPORA...`` prints the accuracy of both on documents
that neither has seen.
"""

import argparse
import re
import sys
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# N prompts, A tasks, F hashed features.
Floats = NDArray[np.float32]
WORD = re.compile(r"[a-z_]{2,}|[^\W\d_a-z]")
KEYWORDS = 100
LEAST_COUNT = 3
NGRAMS = (2, 3, 4)
FEATURES = 1 << 14
ROUNDS = 150
RATE = 0.5
PROMPT_CHARACTERS = 240
PROMPTS_OF_TASK = 240
SEED = 0


@dataclass(frozen=True, slots=True)
class Keywords:
    """A list of words for each task."""

    words: Mapping[str, frozenset[str]]

    def label(self, prompt: str) -> str:
        """Return the task with most matches; the first of equals."""
        found = WORD.findall(prompt.lower())
        return max(self.words, key=lambda task: sum(word in self.words[task] for word in found))


@dataclass(frozen=True, slots=True)
class Ngrams:
    """A logistic regression on hashed character n-grams.

    Attributes:
        tasks: Labels, in the order of the columns.
        weight_FA: Weight of each feature for each task.
        bias_A: Of each task.
    """

    tasks: tuple[str, ...]
    weight_FA: Floats
    bias_A: Floats

    def label(self, prompt: str) -> str:
        """Return the likeliest task."""
        score_A = hashed([prompt])[0] @ self.weight_FA + self.bias_A
        return self.tasks[int(np.argmax(score_A))]


def fit_keywords(prompts: Sequence[str], tasks: Sequence[str]) -> Keywords:
    """Profile the lists: the words of highest smoothed log odds in a task against the others."""
    of_task: dict[str, Counter[str]] = {task: Counter() for task, _ in Counter(tasks).most_common()}
    for prompt, task in zip(prompts, tasks, strict=True):
        of_task[task].update(WORD.findall(prompt.lower()))
    everywhere = sum(of_task.values(), Counter())
    total = everywhere.total()
    words = {}
    for task, counted in of_task.items():
        mine, others = counted.total() + 1, total - counted.total() + 1
        odds = {
            word: np.log((count + 1) / mine) - np.log((everywhere[word] - count + 1) / others)
            for word, count in counted.items()
            if count >= LEAST_COUNT
        }
        ranked = sorted(odds, key=lambda word: (-odds[word] * np.sqrt(counted[word]), word))
        words[task] = frozenset(ranked[:KEYWORDS])
    return Keywords(words)


def fit_ngrams(prompts: Sequence[str], tasks: Sequence[str]) -> Ngrams:
    """Fit by full-batch gradient descent with momentum; deterministic."""
    labels = tuple(sorted(set(tasks)))
    at_N = np.array([labels.index(task) for task in tasks])
    feature_NF = hashed(prompts)
    wanted_NA = np.eye(len(labels), dtype=np.float32)[at_N]
    weight_FA = np.zeros((FEATURES, len(labels)), np.float32)
    bias_A = np.zeros(len(labels), np.float32)
    push_FA = np.zeros_like(weight_FA)
    for _ in range(ROUNDS):
        score_NA = feature_NF @ weight_FA + bias_A
        odds_NA = np.exp(score_NA - score_NA.max(axis=1, keepdims=True))
        error_NA = (odds_NA / odds_NA.sum(axis=1, keepdims=True) - wanted_NA) / len(at_N)
        push_FA = 0.9 * push_FA + feature_NF.T @ error_NA
        weight_FA -= RATE * len(labels) * push_FA
        bias_A -= RATE * error_NA.sum(axis=0)
    return Ngrams(labels, weight_FA, bias_A)


def hashed(prompts: Sequence[str]) -> Floats:
    """Return the prompts as counts of n-grams by hash, square-rooted and scaled to length 1."""
    feature_NF = np.zeros((len(prompts), FEATURES), np.float32)
    for row_F, prompt in zip(feature_NF, prompts, strict=True):
        text = f" {prompt.lower()} "
        for size in NGRAMS:
            for begin in range(len(text) - size + 1):
                row_F[zlib.crc32(text[begin : begin + size].encode()) % FEATURES] += 1
    feature_NF = np.sqrt(feature_NF)
    norm_N1 = np.linalg.norm(feature_NF, axis=1, keepdims=True)
    scaled_NF: Floats = feature_NF / np.maximum(norm_N1, 1e-12)
    return scaled_NF


def pieces(documents: Sequence[bytes], rng: np.random.Generator) -> list[str]:
    """Return prompts cut from documents at any place, a few of each."""
    texts = [document.decode(errors="ignore") for document in documents]
    found = []
    for at in rng.permutation(np.arange(PROMPTS_OF_TASK) % len(texts)):
        begin = int(rng.integers(max(1, len(texts[at]) - PROMPT_CHARACTERS)))
        piece = texts[at][begin : begin + PROMPT_CHARACTERS].strip()
        if piece:
            found.append(piece)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the accuracy of both classifiers by task, on documents held out."""
    from moesim.backends.reference.texts import read_split  # noqa: PLC0415  only a run reads texts

    parser = argparse.ArgumentParser(prog="python -m moesim.backends.predictors.tasks")
    parser.add_argument("corpora", type=Path, nargs="+", help="folders of texts with a manifest")
    parser.add_argument("--tasks", default="", help="comma-separated; all that the texts have")
    options = parser.parse_args(arguments)
    split = read_split(options.corpora, SEED)
    tasks = options.tasks.split(",") if options.tasks else sorted(split.held_out)
    if unknown := sorted(set(tasks) - set(split.held_out)):
        parser.error(f"--tasks {unknown[0]}: the texts have {', '.join(sorted(split.held_out))}")
    rng = np.random.default_rng(SEED)
    fit = [(piece, task) for task in tasks for piece in pieces(split.train[task], rng)]
    test = [(piece, task) for task in tasks for piece in pieces(split.held_out[task], rng)]
    prompts, labels = [piece for piece, _ in fit], [task for _, task in fit]
    classifiers: Mapping[str, Keywords | Ngrams] = {
        "keywords": fit_keywords(prompts, labels),
        "ngrams": fit_ngrams(prompts, labels),
    }
    told = {name: [by.label(piece) for piece, _ in test] for name, by in classifiers.items()}
    sys.stdout.write(
        f"{'task':>22} {'prompts':>8}" + "".join(f"{name:>10}" for name in told) + "\n"
    )
    for task in [*tasks, "all"]:
        of_task = [at for at, (_, true) in enumerate(test) if task in (true, "all")]
        shares = [np.mean([told[name][at] == test[at][1] for at in of_task]) for name in told]
        cells = "".join(f"{share:>10.1%}" for share in shares)
        sys.stdout.write(f"{task:>22} {len(of_task):>8}{cells}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
