"""What is written is read again, bit by bit; what is damaged is told in one line."""

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moesim.traces import RoutingTrace, TraceError, iter_requests, load, read, synthetic, write
from moesim.traces.store import join

SUFFIXES = (".safetensors", ".npz")


@st.composite
def traces(draw: st.DrawFn) -> RoutingTrace:
    """Return a small valid trace of any shape, with or without prompt, gates and signals."""
    trace = synthetic.sticky(
        seed=draw(st.integers(0, 2**16)),
        layers=draw(st.integers(1, 3)),
        experts=draw(st.integers(3, 9)),
        requests=draw(st.integers(1, 3)),
        prompt_tokens=draw(st.integers(0, 3)),
        decode_tokens=draw(st.integers(1, 4)),
        horizons=draw(st.integers(0, 2)),
    )
    return trace if draw(st.booleans()) else replace(trace, gate_TLK=None)


@given(trace=traces())
def test_both_formats_keep_everything(
    trace: RoutingTrace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any valid trace comes back with the same hash from both formats, mapped or not."""
    folder = tmp_path_factory.mktemp("store")
    for suffix in SUFFIXES:
        path = folder / f"t{suffix}"
        write(trace, path)
        for back in (load(path), read(path), read(path, mmap=False)):
            assert trace.content_hash() == back.content_hash()
            assert trace.header == back.header


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_traces_give_equal_bytes(trace: RoutingTrace, suffix: str, tmp_path: Path) -> None:
    """Writing twice, the second time from what was read, gives the same file."""
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    write(trace, first)
    write(read(first), second)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_recognised_by_content(trace: RoutingTrace, suffix: str, tmp_path: Path) -> None:
    """The suffix does not matter for reading."""
    write(trace, tmp_path / f"t{suffix}")
    renamed = (tmp_path / f"t{suffix}").rename(tmp_path / "t.bin")
    assert trace.content_hash() == load(renamed).content_hash()


def test_a_mapped_file_is_not_read_into_memory(trace: RoutingTrace, tmp_path: Path) -> None:
    """The arrays of a safetensors file stand on a read-only map; requests are views of them."""
    write(trace, tmp_path / "t.safetensors")
    mapped = read(tmp_path / "t.safetensors")
    base = mapped.expert_TLK
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not mapped.expert_TLK.flags.writeable
    parts = list(iter_requests(mapped))
    assert all(np.shares_memory(part.expert_TLK, mapped.expert_TLK) for part in parts)


def test_requests_are_walked_through_one_by_one() -> None:
    """Each part is a valid trace of one request, and together they are all rows."""
    trace = synthetic.zipf(seed=2, requests=3, tasks=2, horizons=1)
    parts = list(iter_requests(trace))
    for part in parts:
        part.validate("part")
    assert [part.requests for part in parts] == [1, 1, 1]
    assert [part.task_R[0] for part in parts] == ["task 0", "task 1", "task 0"]
    rows = np.concatenate([part.signals["look_in_TLHM"] for part in parts])
    assert (trace.signals["look_in_TLHM"] == rows).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_cut_off_file_is_told(
    trace: RoutingTrace, suffix: str, kept: float, tmp_path: Path
) -> None:
    """Wherever a file was cut off, one line says so and names it."""
    path = tmp_path / f"t{suffix}"
    write(trace, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: damaged or cut off (")
    assert str(caught.value).endswith("copy or record it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(data=st.data())
def test_a_damaged_file_never_surprises(
    suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are overwritten, the file loads as a valid trace or is refused in one line."""
    path = tmp_path_factory.mktemp("damaged") / f"t{suffix}"
    write(synthetic.uniform(seed=0, layers=2, requests=1, horizons=1), path)
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=4))
    content[start : start + len(patch)] = patch
    path.write_bytes(content)
    try:
        load(path)
    except TraceError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - both outcomes are right
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_array_is_named(trace: RoutingTrace, suffix: str, tmp_path: Path) -> None:
    """A native file without a needed array is refused by the array's name."""
    path = tmp_path / f"t{suffix}"
    arrays = {key: value for key, value in trace.arrays().items() if key != "step_T"}
    if suffix == ".npz":
        np.savez_compressed(path, moesim=np.array(trace.document()), **arrays)  # type: ignore[arg-type]
    else:
        save_file(arrays, path, metadata={"moesim": trace.document()})
    with pytest.raises(TraceError) as caught:
        load(path)
    assert f"{path}: step_T: the array is missing; write the trace again" == str(caught.value)


def test_pickled_objects_are_not_loaded(trace: RoutingTrace, tmp_path: Path) -> None:
    """An npz with an object array is refused, not unpickled."""
    path = tmp_path / "t.npz"
    strange = np.array([{"a": 1}], dtype=object)
    np.savez(path, moesim=np.array(trace.document()), expert_TLK=strange)
    with pytest.raises(TraceError, match=r"damaged or cut off .*allow_pickle=False"):
        load(path)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("{", "moesim: not a trace document (Expecting property name"),
        ("{}", "moesim: not a trace document ('task_R'); write the trace again"),
        ('{"task_R": [], "header": {"model": "m"}}', "header: layer_ids: field required, got"),
    ],
)
def test_a_damaged_document_is_told(
    document: str, expected: str, trace: RoutingTrace, tmp_path: Path
) -> None:
    """A document that is no JSON, lacks a part or breaks the header's schema is one line."""
    path = tmp_path / "t.npz"
    np.savez(path, moesim=np.array(document), **trace.arrays())  # type: ignore[arg-type]
    with pytest.raises(TraceError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_foreign_npz_and_a_foreign_safetensors_are_told(tmp_path: Path) -> None:
    """Reading a file of the right kind without our document says what is missing."""
    np.savez(tmp_path / "t.npz", a=np.zeros(2))
    save_file({"a": np.zeros(2)}, tmp_path / "t.safetensors")
    with pytest.raises(TraceError, match="moesim: the document is missing; this npz is not"):
        read(tmp_path / "t.npz")
    with pytest.raises(TraceError, match="moesim: the document is missing; this file is not"):
        read(tmp_path / "t.safetensors")


def test_an_invalid_trace_leaves_no_file(trace: RoutingTrace, tmp_path: Path) -> None:
    """Nothing is written, not even a temporary file, and an older file stays."""
    path = tmp_path / "t.npz"
    write(trace, path)
    before = path.read_bytes()
    with pytest.raises(TraceError, match="expert_TLK: dtype int64"):
        write(replace(trace, expert_TLK=trace.expert_TLK.astype(np.int64)), path)  # type: ignore[arg-type]
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_a_failed_write_leaves_no_file(
    trace: RoutingTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up in the middle leaves neither a torn file nor a temporary one."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(OSError, match="No space left"):
        write(trace, tmp_path / "t.npz")
    assert list(tmp_path.iterdir()) == []


def test_where_a_trace_cannot_go_is_told(trace: RoutingTrace, tmp_path: Path) -> None:
    """An unknown suffix and a folder that does not exist are one line each."""
    with pytest.raises(TraceError, match=r"suffix '.csv'; write to .safetensors or .npz"):
        write(trace, tmp_path / "t.csv")
    with pytest.raises(TraceError, match=r"no folder .*nowhere; make it first"):
        write(trace, tmp_path / "nowhere" / "t.npz")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pieces_join_to_what_they_were_cut_from(
    trace: RoutingTrace, suffix: str, tmp_path: Path
) -> None:
    """Written request by request and joined, a trace has the bytes of the one written at once."""
    pieces = []
    for number, piece in enumerate(iter_requests(trace)):
        pieces.append(tmp_path / f"{number}.safetensors")
        write(piece, pieces[-1])
    joined, whole = tmp_path / f"joined{suffix}", tmp_path / f"whole{suffix}"
    join(pieces, joined)
    write(trace, whole)
    assert read(whole).content_hash() == read(joined).content_hash()
    assert whole.read_bytes() == joined.read_bytes()


def test_pieces_of_different_recordings_do_not_join(trace: RoutingTrace, tmp_path: Path) -> None:
    """Another header is told with the file that has it; nothing is written."""
    other = replace(trace, header=trace.header.model_copy(update={"model": "another"}))
    write(trace, tmp_path / "a.safetensors")
    write(other, tmp_path / "b.safetensors")
    with pytest.raises(TraceError, match=r"b.safetensors: header: differs from"):
        join([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], tmp_path / "c.npz")
    with pytest.raises(TraceError, match="there are none"):
        join([], tmp_path / "c.npz")
    assert not (tmp_path / "c.npz").exists()
