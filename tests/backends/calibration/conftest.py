"""What the tests of calibration share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_olmoe(write_shape: Callable[..., Path]) -> Path:
    """Return the file of a small OLMoE shape of five layers."""
    return write_shape(
        name="small-olmoe",
        hf_id="nobody/OLMoE-small",
        decoder_layers=5,
        vocab=128,
        attention={"kind": "gqa", "heads": 2, "kv_heads": 2, "head_dim": 32, "qk_norm": "all"},
    )
