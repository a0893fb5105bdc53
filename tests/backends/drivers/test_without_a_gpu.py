"""What a machine without a GPU answers: one line and exit code 3, or a name of what is missing."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="drivers move tensors")

from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402 - after the skip
from moesim.backends.execute_command import execute  # noqa: E402
from moesim.backends.loading import NotAvailableError  # noqa: E402
from moesim.backends.models import ModelError  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_the_command_says_so_and_exits_3(repository: Path, tmp_path: Path) -> None:
    """``--backend cuda`` ends before anything is loaded, with the way out."""
    app = typer.Typer()
    app.command()(execute)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The king said\n")
    weights = repository / "backends" / "reference" / "weights"
    arguments = [str(weights), "--prompts", str(prompts), "--backend", "cuda"]

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 3
    assert result.stderr == (
        "moesim: device cuda: this machine has 0 GPUs; --backend cpu runs anywhere\n"
    )


def test_the_driver_and_the_store_name_what_is_missing(make_model: Any) -> None:
    """A driver without a GPU and a store that is to be pinned are refused in one line."""
    model = make_model("Mixtral")
    with pytest.raises(ModelError, match="page-locked memory needs a CUDA GPU"):
        ExpertStore.take_from(model, pin=True)
    store = ExpertStore.take_from(model)
    controller: Any = None
    with pytest.raises(NotAvailableError, match="this machine has 0 GPUs"):
        CudaDriver(controller, store, 2**20)
