"""Record a long trace piece by piece: memory stays small, and a killed recording goes on.

Pieces are native traces in ``NAME.parts`` beside the target, with the fingerprint of what is being
recorded. The same recording, started again, keeps the pieces that are whole and makes the others;
since every request has its own random stream and batches are cut in the same places, the trace is
the same. At the end the pieces are joined into the target, file to file, and removed.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from moesim.backends.models import ModelError
from moesim.backends.recorder import Recording
from moesim.simulator.errors import InputError
from moesim.traces import write
from moesim.traces.store import join, read

PIECE_REQUESTS = 16
FINGERPRINT = "recording.sha256"


def fingerprint(recording: Recording) -> str:
    """Return the SHA-256 of all that decides the trace."""
    content = {
        "header": recording.header().model_dump(mode="json"),
        "requests": [
            [list(request.prompt), request.task, list(request.forced or ())]
            for request in recording.requests
        ],
        "horizons": recording.horizons,
        "batch": recording.batch,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def record_in_pieces(
    recording: Recording, target: Path, on_step: Callable[[int], None] | None = None
) -> None:
    """Record to a file, going on where an earlier run of the same recording was stopped.

    Args:
        recording: What to record.
        target: A ``.safetensors`` or ``.npz`` file in an existing folder.
        on_step: Told how many tokens went through; a piece found counts at once.

    Raises:
        InputError: ``NAME.parts`` holds pieces of another recording.
        ModelError: As `Recording.run`.
    """
    if not recording.requests:
        raise ModelError("no request to record; give at least one prompt")
    parts = target.with_name(f"{target.name}.parts")
    _claim(parts, fingerprint(recording))
    per_piece = max(1, PIECE_REQUESTS // recording.batch) * recording.batch
    pieces = []
    for start in range(0, len(recording.requests), per_piece):
        piece = parts / f"{start:08d}.safetensors"
        stop = min(start + per_piece, len(recording.requests))
        if not piece.is_file():
            write(recording.run(start, stop, on_step), piece)
        elif on_step is not None:
            on_step(read(piece).tokens)
        pieces.append(piece)
    join(pieces, target)
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()


def _claim(parts: Path, wanted: str) -> None:
    """Make the folder of pieces, or find it with the same fingerprint."""
    parts.mkdir(exist_ok=True)
    mark = parts / FINGERPRINT
    scratch = parts / f"{FINGERPRINT}.new"
    scratch.unlink(missing_ok=True)
    if mark.is_file():
        if mark.read_text() != wanted:
            raise InputError(
                f"{parts}: holds pieces of another recording; finish that one, delete the folder,"
                " or write to another file"
            )
    elif any(parts.iterdir()):
        raise InputError(f"{parts}: in the way and not a recording; write to another file")
    else:
        scratch.write_text(wanted)
        scratch.replace(mark)
