"""Load a checkpoint and its tokenizer from a folder or, if the user gives an id, from the hub."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from moesim.backends.models import Model, ModelError
from moesim.simulator.errors import UnavailableError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HASHED_BYTES = 2**30
HASH_BLOCK_BYTES = 2**24


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model ready to run, and what names it.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: Of transformers; None where the weights are random.
        name: The hub's id, or the folder's name.
        revision: The hub's commit; for a folder of up to 1 GiB the SHA-256 of its weights.
        bytes_per_parameter: As stored; None where the checkpoint is quantised.
        tokenizer_hash: SHA-256 of what the tokenizer does; None for one that is not a fast one.
    """

    model: Model
    tokenizer: Any
    name: str
    revision: str | None
    bytes_per_parameter: int | None
    tokenizer_hash: str | None


def choose_device(wanted: str) -> torch.device:
    """Return the device; ``auto`` is CUDA where there is one.

    Raises:
        UnavailableError: The device is not on this machine.
        ModelError: torch knows no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ModelError(f"no device {wanted!r}; there are auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnavailableError(
            f"device {wanted}: this machine has {torch.cuda.device_count()} GPUs; cpu runs anywhere"
        )
    return device


def load_checkpoint(
    source: str, device: torch.device, *, runs_on: torch.device | None = None
) -> Checkpoint:
    """Load in float32 for a CPU, where routes are to be repeatable, and as stored for a GPU.

    Args:
        source: A folder, or an id of the hub.
        device: Where the weights go.
        runs_on: Where they will be used, if that is elsewhere.

    Raises:
        ModelError: There is no such folder, or transformers can't load it.
    """
    folder = Path(source)
    if not folder.is_dir() and not HUB_ID.fullmatch(source):
        raise ModelError(f"{source}: no such folder, and not a hub id of the form owner/name")
    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model: Model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32 if (runs_on or device).type == "cpu" else "auto"
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{source}: transformers can't load it: {reason}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    stored = getattr(config, "dtype", None) or torch.float32
    is_quantised = getattr(config, "quantization_config", None) is not None
    is_folder = folder.is_dir()
    return Checkpoint(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        name=folder.resolve().name if is_folder else source,
        revision=_weights_hash(folder) if is_folder else getattr(config, "_commit_hash", None),
        bytes_per_parameter=None if is_quantised else stored.itemsize,
        tokenizer_hash=None if backend is None else _sha256(backend.to_str().encode()),
    )


def load_config(source: str) -> Any:  # noqa: ANN401  a configuration of transformers
    """Return the configuration of a checkpoint, without its weights.

    Raises:
        ModelError: There is none, or transformers can't read it.
    """
    try:
        return transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"{source}: transformers can't read its configuration: {reason}"
        ) from error


def _weights_hash(folder: Path) -> str | None:
    files = sorted(folder.glob("*.safetensors"))
    if not files or sum(path.stat().st_size for path in files) > HASHED_BYTES:
        return None
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
