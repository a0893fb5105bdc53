"""The model shapes that ship, and the one that a trace was recorded from."""

import re
from pathlib import Path
from typing import NamedTuple

from moesim.hardware_profiles.files import find, names_in, read
from moesim.simulator.models.schema import ModelShape

FOLDER = Path(__file__).parent


class ShapeMatch(NamedTuple):
    """A shape that fits a trace.

    Attributes:
        name: Of the shape.
        note: What differs, for the reader of a result; empty if nothing does.
    """

    name: str
    note: str


def names() -> list[str]:
    """Return the names of the shapes that ship."""
    return names_in(FOLDER)


def load(name_or_path: str | Path) -> ModelShape:
    """Return the shape of that name, or the one in that YAML file.

    Raises:
        ProfileError: If there is none (the names are listed) or the file is faulty.
    """
    return read(find(name_or_path, FOLDER, "model shape"), ModelShape)


def match(model: str, layers: int, experts: int, top_k: int) -> ShapeMatch | None:
    """Return the shape that a trace's header names, if the trace has that shape too.

    Args:
        model: What the header calls the model; the name may stand anywhere in it.
        layers: MoE layers of the trace (L).
        experts: Experts of a layer (E).
        top_k: Chosen per token (K); may be lower than the model's, which the note then says.

    >>> match("Qwen3-30B-A3B-Q4_K_M.gguf", layers=48, experts=128, top_k=6)
    ShapeMatch(name='qwen3-30b-a3b', note='top-6 where the model has top-8')
    >>> match("Qwen3-30B-A3B", layers=24, experts=128, top_k=8) is None
    True
    """
    longest = 0
    found = None
    for name in names():
        shape = load(name)
        fits = (layers, experts) == (len(shape.moe_layers), shape.experts)
        if not fits or top_k > shape.top_k:
            continue
        for alias in (name, shape.hf_id.partition("/")[2], *shape.aliases):
            if len(alias) > longest and _names(model, alias):
                longest = len(alias)
                lowered = top_k < shape.top_k
                note = f"top-{top_k} where the model has top-{shape.top_k}" if lowered else ""
                found = ShapeMatch(name, note)
    return found


def _names(text: str, alias: str) -> bool:
    """Say whether `alias` stands in `text` as whole words, whatever separates them."""
    words = re.findall(r"[a-z0-9]+", alias.lower())
    pattern = "[^a-z0-9]*".join(words)
    return re.search(rf"(?<![a-z0-9]){pattern}(?![a-z0-9])", text.lower()) is not None
