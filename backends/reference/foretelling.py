"""How well the reference model's next experts are foretold, beside an untrained one's.

``python -m moesim.backends.reference.foretelling`` feeds the texts of the sample trace to the
weights that ship and to the same shape with random weights, and writes ``recall.json``: the recall
of the most popular experts, of a transition table and of look-ahead from both taps, one to three
layers ahead. What is measured is defined in `moesim.traces.recall`. It takes seconds on a CPU.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moesim.backends.models import Model
from moesim.backends.recorder import Origin, Request, Sampling, record
from moesim.backends.reference.architecture import make_model, use_dense_experts
from moesim.backends.reference.report import RECALL, SCRATCH, WEIGHTS
from moesim.backends.reference.train import read_model
from moesim.simulator.results.rows import write_text
from moesim.traces import RoutingTrace, samples
from moesim.traces.recall import LOOK_AHEAD, look_ahead_recall, popular_recall, table_recall
from moesim.traces.store import read

SAMPLE = Path(samples.__file__).parent / "reference-12x32.npz"
HORIZONS = 3


def untrained_model(seed: int) -> Model:
    """Return the shape of the reference model as it was before its first step."""
    torch.manual_seed(seed)
    model = make_model()
    use_dense_experts(model)
    return model.eval()


def routes_of(model: Model, texts: RoutingTrace) -> RoutingTrace:
    """Return the routes and look-ahead of a model that reads the texts of a trace, each at once."""
    starts = texts.row_starts()
    requests = [
        Request(prompt=texts.signals["token_T"][first:stop].tolist(), forced=[0], task=task)
        for first, stop, task in zip(starts, starts[1:], texts.task_R, strict=False)
    ]
    return record(
        model,
        requests,
        Sampling(new_tokens=1),
        Origin(model="reference"),
        signals=LOOK_AHEAD,
        horizons=HORIZONS,
    )


def recall(trace: RoutingTrace) -> dict[str, list[float | None]]:
    """Return each way's recall one to three layers ahead; popularity has no horizon."""
    return {
        "popular": [popular_recall(trace)],
        "table": [table_recall(trace, ahead) for ahead in range(1, HORIZONS + 1)],
        **{signal: look_ahead_recall(trace, signal) for signal in LOOK_AHEAD},
    }


def measure(weights: Path, texts: RoutingTrace, seed: int) -> dict[str, Any]:
    """Return what ``recall.json`` holds."""
    return {
        "recipe": "python -m moesim.backends.reference.foretelling",
        "weights_sha256": hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest(),
        "texts_sha256": hashlib.sha256(
            np.ascontiguousarray(texts.signals["token_T"], dtype="<i4").tobytes()
        ).hexdigest(),
        "tokens": texts.tokens,
        "trained": recall(routes_of(read_model(weights, torch.device("cpu")), texts)),
        "untrained": recall(routes_of(untrained_model(seed), texts)),
    }


def main() -> None:
    """Measure and write the file."""
    seed = json.loads(SCRATCH.read_text())["provenance"]["seed"]
    found = measure(WEIGHTS, read(SAMPLE), seed)
    write_text(RECALL, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
