"""A recording in pieces: the same trace as in one go, also when it was killed on the way."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the recorder runs a real model")
pytest.importorskip("transformers", reason="the recorder runs a transformers model")

from moesim.backends import pieces
from moesim.backends.generation import Request, Sampling
from moesim.backends.pieces import record_in_pieces
from moesim.backends.recorder import Origin, Recording
from moesim.backends.signals import SPECS
from moesim.simulator.errors import InputError
from moesim.traces import load


@pytest.fixture
def recording(make_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Return a recording of seven requests, in pieces of two."""
    monkeypatch.setattr(pieces, "PIECE_REQUESTS", 2)
    return Recording(
        model=make_model("Qwen3Moe"),
        requests=[Request(prompt=range(3, 5 + n), task=f"task {n % 2}") for n in range(7)],
        sampling=Sampling(new_tokens=4, temperature=1.0, seed=2, ignore_eos=True),
        origin=Origin(model="tiny"),
        signals=tuple(SPECS),
        batch=2,
    )


class Killed(Exception):  # noqa: N818 - not an error of the program
    """Stands for the end of the process."""


def killed_after(steps: int) -> Callable[[int], None]:
    """Return a callback that ends the recording at a step."""
    left = iter(range(steps))

    def on_step(tokens: int) -> None:
        del tokens
        if next(left, None) is None:
            raise Killed

    return on_step


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_pieces_join_to_the_trace_of_one_go(
    recording: Recording, tmp_path: Path, suffix: str
) -> None:
    """Rows, signals, labels and numbers are those of a recording in memory; no piece is left."""
    target = tmp_path / f"t{suffix}"
    record_in_pieces(recording, target)
    assert recording.run().content_hash() == load(target).content_hash()
    assert [target] == list(tmp_path.iterdir())


@pytest.mark.parametrize("steps", [0, 3, 6, 9, 15])
def test_killed_and_resumed_is_the_same_file(
    recording: Recording, tmp_path: Path, steps: int
) -> None:
    """Whole pieces are kept, the others made; the bytes are those of an undisturbed recording."""
    whole, target = tmp_path / "whole.safetensors", tmp_path / "t.safetensors"
    record_in_pieces(recording, whole)
    with pytest.raises(Killed):
        record_in_pieces(recording, target, killed_after(steps))
    assert not target.exists()
    seen: list[int] = []
    record_in_pieces(recording, target, seen.append)
    assert whole.read_bytes() == target.read_bytes()
    assert sum(seen) == load(target).tokens


def test_a_piece_that_is_whole_is_not_recorded_again(recording: Recording, tmp_path: Path) -> None:
    """The second run does fewer forward passes by those of the pieces that were there."""
    target = tmp_path / "t.safetensors"
    with pytest.raises(Killed):
        record_in_pieces(recording, target, killed_after(9))
    assert len(list((tmp_path / "t.safetensors.parts").glob("*.safetensors"))) == 2
    seen: list[int] = []
    record_in_pieces(recording, target, seen.append)
    assert len(seen) == 2 + 2 * 4


def test_pieces_of_another_recording_are_refused(recording: Recording, tmp_path: Path) -> None:
    """Another seed gives other tokens, so its pieces can't be mixed in; the way out is said."""
    target = tmp_path / "t.safetensors"
    with pytest.raises(Killed):
        record_in_pieces(recording, target, killed_after(6))
    other = replace(recording, sampling=replace(recording.sampling, seed=3))
    with pytest.raises(InputError, match="pieces of another recording.*delete the folder"):
        record_in_pieces(other, target)


def test_only_one_piece_is_in_memory(
    recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call records more requests than a piece has, however many there are."""
    sizes: list[int] = []
    write = pieces.write
    monkeypatch.setattr(
        pieces, "write", lambda trace, path: (sizes.append(trace.requests), write(trace, path))
    )
    record_in_pieces(recording, tmp_path / "t.safetensors")
    assert sizes == [2, 2, 2, 1]


def peak_bytes(recording: Recording, target: Path) -> int:
    """Return the most memory that Python and numpy held at once while recording."""
    tracemalloc.start()
    try:
        record_in_pieces(recording, target)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_prompts(recording: Recording, tmp_path: Path) -> None:
    """With four times the prompts the peak rises by less than a tenth of what the file does."""
    prompts = [Request(prompt=range(3, 67)) for _ in range(24)]
    few, many = tmp_path / "few.safetensors", tmp_path / "many.safetensors"
    peak_bytes(replace(recording, requests=prompts[:2]), tmp_path / "warm.safetensors")
    few_bytes = peak_bytes(replace(recording, requests=prompts[:6]), few)
    many_bytes = peak_bytes(replace(recording, requests=prompts), many)
    written_bytes = many.stat().st_size - few.stat().st_size
    assert many_bytes - few_bytes < written_bytes / 10
