"""RTRACE01: probabilities of every expert, from which the chosen ones are taken."""

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import TraceError, load

PROBS = np.array(
    [[[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], [[0.1, 0.6, 0.1, 0.2], [0.25, 0.3, 0.05, 0.4]]],
    dtype=np.float32,
)


def dump(path: Path, *, records: int = 4, cut: int = 0, top_k: int | None = 2) -> Path:
    """Write 2 tokens of layers 1 and 3, perhaps without the last records or bytes."""
    body = b""
    for index in range(records):
        token, layer = divmod(index, 2)
        place = np.array([token, 1 + 2 * layer], dtype="<i4")
        body += place.tobytes() + PROBS[token, layer].tobytes()
    target = path / "trace.bin"
    start = b"RTRACE01" + np.array([4, 0], dtype="<i4").tobytes()
    target.write_bytes((start + body)[: len(start + body) - cut])
    if top_k is not None:
        (path / "config.json").write_text(json.dumps({"num_experts_per_tok": top_k}))
    return target


def test_the_most_probable_experts_are_the_chosen_ones(tmp_path: Path) -> None:
    """Ids follow the probabilities, which stay as a signal; the phase is unknown and noted."""
    trace = load(dump(tmp_path))
    assert trace.expert_TLK.tolist() == [[[0, 1], [3, 2]], [[1, 3], [3, 1]]]
    assert (trace.signals["router_probs_TLE"] == PROBS).all()
    assert (trace.header.layer_ids, trace.experts, trace.top_k) == ((1, 3), 4, 2)
    assert not trace.has_prefill
    assert "all rows are read as decode rows" in str(trace.header.notes)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"top_k": None}, "header: the file does not say how many experts are chosen; put the"),
        ({"top_k": 5}, "header: 4 experts; between the 5 chosen and 32767"),
        ({"cut": 3}, "record 3: 93 bytes are not records of 24; is the file cut off?"),
        ({"cut": 96}, "record 0: 0 bytes are not records of 24; is the file cut off?"),
        ({"records": 3}, "token 1, layer 3: 0 records; each token has each layer once"),
    ],
)
def test_a_wrong_file_is_told(changed: dict[str, int], expected: str, tmp_path: Path) -> None:
    """One line names the record or the token and layer."""
    path = dump(tmp_path, **changed)  # type: ignore[arg-type]
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")
