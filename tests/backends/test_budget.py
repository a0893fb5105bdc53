"""What a GPU's runtime takes is counted beside weights and caches."""

import pytest

torch = pytest.importorskip("torch", reason="layouts have dtypes of torch")
pytest.importorskip("transformers", reason="the backend's models are its")

from moesim.backends.drivers.cuda.grouped_experts import rows_bytes  # noqa: E402 - after the skip
from moesim.backends.formats import BF16  # noqa: E402
from moesim.backends.layouts import ExpertLayout  # noqa: E402


def test_a_prompts_rows_are_counted() -> None:
    """Each (token, expert) row takes its product in float32 and its activation in the weights'."""
    layout = ExpertLayout.make("by-matrix", BF16, width=2048, intermediate=1024)
    assert rows_bytes(layout, 16_384) == 16_384 * (2048 * 4 + 1024 * 2)
