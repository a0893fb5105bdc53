"""What a machine without a GPU answers: one line and exit code 3, or a name of what is missing."""

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="drivers move tensors")

from moesim.backends.drivers.cuda.driver import CudaDriver  # noqa: E402 - after the skip
from moesim.backends.models import ModelError  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.simulator.cli import main  # noqa: E402
from moesim.simulator.errors import UnavailableError  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_the_command_says_so_and_exits_3(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--backend cuda`` ends before anything is loaded, with the way out."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The king said\n")
    weights = repository / "backends" / "reference" / "weights"
    arguments = [str(weights), "--prompts", str(prompts), "--backend", "cuda"]

    monkeypatch.setattr(sys, "argv", ["moesim", "execute", *arguments])
    with pytest.raises(SystemExit) as left:
        main()

    assert left.value.code == 3
    assert capsys.readouterr().err == (
        "moesim: device cuda: this machine has 0 GPUs; cpu runs anywhere\n"
    )


def test_the_driver_and_the_store_name_what_is_missing(make_model: Any) -> None:
    """A driver without a GPU and a store that is to be pinned are refused in one line."""
    model = make_model("Mixtral")
    with pytest.raises(ModelError, match="page-locked memory needs a CUDA GPU"):
        ExpertStore.take_from(model, pin=True)
    store = ExpertStore.take_from(model)
    controller: Any = None
    with pytest.raises(UnavailableError, match="this machine has 0 GPUs"):
        CudaDriver(controller, store, 2**20)
