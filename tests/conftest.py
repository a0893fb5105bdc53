"""What every test may ask for."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")

# Shells start background jobs with interrupts ignored, and some tests interrupt a run.
signal.signal(signal.SIGINT, signal.default_int_handler)

collect_ignore = ["plugin_sample"]  # a distribution of its own; test_plugin.py runs its tests

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of recorded data that lies beside the checkout and is never committed."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the recorded data of ../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def write_shape(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a small Qwen3-MoE shape, some of its keys changed."""

    def write(**changes: object) -> Path:
        shape = {
            "schema": 1,
            "name": "tiny",
            "hf_id": "Qwen/Qwen3-tiny",
            "formats": ["bf16"],
            "decoder_layers": 3,
            "moe_layers": "all",
            "experts": 8,
            "top_k": 2,
            "hidden": 64,
            "expert_width": 32,
            "vocab": 256,
            "attention": {
                "kind": "gqa",
                "heads": 4,
                "kv_heads": 2,
                "head_dim": 16,
                "qk_norm": "head",
            },
        } | changes
        path = tmp_path_factory.mktemp("shapes") / f"{shape['name']}.yaml"
        path.write_text(yaml.safe_dump(shape))
        return path

    return write
