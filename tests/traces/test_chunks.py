"""A trace in a folder of chunks is the same trace: same rows, same id, read when asked for."""

import json
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import RoutingTrace, TraceError, describe, iter_requests, load, synthetic, write
from moesim.traces.chained import Chained
from moesim.traces.chunks import (
    INDEX,
    Index,
    check_whole,
    cut,
    read_chunks,
    read_index,
    sniff,
    write_chunks,
)


@pytest.fixture
def trace() -> RoutingTrace:
    """Return nine requests of seven rows with gates and a signal."""
    return synthetic.zipf(seed=4, requests=9, prompt_tokens=3, decode_tokens=4, tasks=2, horizons=1)


@pytest.fixture
def folder(trace: RoutingTrace, tmp_path: Path) -> Path:
    """Return it in chunks of two requests."""
    write_chunks(cut(trace, 15), tmp_path / "long")
    return tmp_path / "long"


def edit(folder: Path, **changes: object) -> None:
    """Change keys of an index and its own hash with them, as whoever knows the format could."""
    index = read_index(folder)
    changed = Index.model_validate(index.model_dump() | changes)
    (folder / INDEX).write_text(changed.sealed().model_dump_json())


def test_every_array_and_the_id_come_back(trace: RoutingTrace, folder: Path) -> None:
    """The whole equals what was cut, value by value, and the index names its content hash."""
    found = load(folder)
    assert found.content_hash() == trace.content_hash() == found.computed_hash()
    for name, array in trace.arrays().items():
        assert np.array_equal(array, np.asarray(found.arrays()[name]))
        assert found.arrays()[name].dtype == array.dtype
    assert (found.tokens, found.requests, found.task_R) == (63, 9, trace.task_R)
    check_whole(found, folder)


def test_chunks_hold_whole_requests_and_can_be_read_alone(folder: Path) -> None:
    """Each chunk is a valid native file with requests numbered from 0."""
    chunks = json.loads((folder / INDEX).read_text())["chunks"]
    assert [chunk["tokens"] for chunk in chunks] == [14, 14, 14, 14, 7]
    for chunk in chunks:
        alone = load(folder / chunk["file"])
        assert alone.requests == chunk["requests"]


def test_requests_come_out_as_they_went_in(trace: RoutingTrace, folder: Path) -> None:
    """Walking request by request gives the same traces, and a row's view is of one chunk."""
    for one, other in zip(iter_requests(trace), iter_requests(load(folder)), strict=True):
        assert one.content_hash() == other.content_hash()


def test_parts_of_it_have_ids_of_their_own(trace: RoutingTrace, folder: Path) -> None:
    """The known hash is that of the whole alone: a head, a choice and another header differ."""
    found = load(folder)
    assert found.head(requests=3).content_hash() == trace.head(requests=3).content_hash()
    chosen = [7, 0, 4]
    assert (
        found.select_requests(chosen).content_hash() == trace.select_requests(chosen).content_hash()
    )


def test_statistics_are_the_same(trace: RoutingTrace, folder: Path) -> None:
    """What `trace info` prints does not depend on how the trace lies on disk."""
    assert describe(load(folder)) == describe(trace)


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(3, 9),
        slice(12, 30),
        slice(5, 5),
        slice(70, 80),
        slice(0, 63, 5),
        np.array([60, 2, 2, 33]),
        np.arange(63) % 3 == 0,
        (slice(10, 20), 1),
        (14, 2, 0),
    ],
)
def test_rows_are_numpys(trace: RoutingTrace, folder: Path, key: object) -> None:
    """Numbers, slices, lists, masks and axes behind them give what an array gives."""
    assert np.array_equal(trace.expert_TLK[key], load(folder).expert_TLK[key])  # type: ignore[index]


def test_sums_and_extremes_go_by_piece(trace: RoutingTrace, folder: Path) -> None:
    """They agree with numpy's; the largest position is known from the index."""
    found = load(folder)
    assert (found.has_prefill, found.has_decode) == (True, True)
    assert found.prefill_tokens == int(trace.is_prefill_T.sum())
    assert found.position_T.max() == trace.position_T.max()
    assert np.array_equal(found.row_starts(), trace.row_starts())


def test_opening_reads_no_row(folder: Path) -> None:
    """Length, id and starts of requests are told without opening more than the first chunk."""
    for chunk in sorted(folder.glob("chunk-*"))[1:]:
        chunk.unlink()
    found = load(folder)
    assert (found.tokens, int(found.row_starts()[-1]), found.position_T.max()) == (63, 63, 6)
    assert isinstance(found.expert_TLK, Chained)
    with pytest.raises(TraceError, match="chunk-000001.safetensors: no such chunk"):
        found.expert_TLK[20]


def test_a_changed_chunk_is_told_when_it_is_opened(folder: Path) -> None:
    """The index's id cannot speak of other content: the first row of the chunk is refused."""
    path = folder / "chunk-000002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = load(folder)
    assert found.expert_TLK[0].shape == (4, 2)
    with pytest.raises(TraceError, match="chunk-000002.safetensors: SHA-256 differs"):
        found.expert_TLK[30]


def test_a_wrong_id_in_the_index_is_found(folder: Path) -> None:
    """Whoever writes another content hash into the index is found out by the full check."""
    edit(folder, content_hash="0" * 64)
    with pytest.raises(TraceError, match="content_hash: not the content's"):
        check_whole(read_chunks(folder), folder)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["one", "two"]},
        {"content_hash": "0" * 64},
        {"last_position": 99},
    ],
)
def test_an_edited_index_is_refused(folder: Path, change: dict[str, object]) -> None:
    """Labels, id and figures count only as they were written: results name the trace by them."""
    index = folder / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(TraceError, match=f"{INDEX}: was edited; write the trace again"):
        load(folder)


def test_an_edited_header_is_refused(folder: Path) -> None:
    """So does the model whose routing it is."""
    index = folder / INDEX
    found = json.loads(index.read_text())
    index.write_text(json.dumps(found | {"header": found["header"] | {"model": "another"}}))
    with pytest.raises(TraceError, match=f"{INDEX}: was edited"):
        load(folder)


def test_a_chunk_has_the_rows_that_the_index_says(folder: Path) -> None:
    """Rows moved from one chunk to its neighbour are told when the first of them is opened."""
    chunks = [chunk.model_dump() for chunk in read_index(folder).chunks]
    chunks[0]["tokens"], chunks[1]["tokens"] = 13, 15
    edit(folder, chunks=chunks)
    with pytest.raises(
        TraceError, match="chunk-000000.safetensors: 14 rows of 2 requests, but index.json says 13"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": []}, "chunks: "),
        ({"last_position": -1}, "last_position: "),
        ({"labels": None}, "labels: "),
    ],
)
def test_a_faulty_index_is_one_line(folder: Path, change: dict[str, object], message: str) -> None:
    """File and key are named."""
    index = folder / INDEX
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(TraceError, match=f"{INDEX}: {message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_same_trace_same_bytes(trace: RoutingTrace, folder: Path, tmp_path: Path) -> None:
    """Cut in the same way it is the same folder, whether it came from memory or from chunks."""
    write_chunks(cut(load(folder), 15), tmp_path / "again")
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert trace.content_hash() == load(tmp_path / "again").content_hash()


def test_nothing_is_left_of_a_failure(trace: RoutingTrace, tmp_path: Path) -> None:
    """Where a piece does not fit the others there is no folder, nor a draft of one."""
    other = synthetic.uniform(seed=1, layers=3)
    with pytest.raises(TraceError, match="piece 1: header or arrays differ"):
        write_chunks([trace, other], tmp_path / "long")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(trace: RoutingTrace, folder: Path) -> None:
    """Writing where something lies is refused."""
    with pytest.raises(TraceError, match="exists already"):
        write_chunks(cut(trace), folder)
    assert sniff(folder)


def test_a_chunked_trace_becomes_one_file_again(
    trace: RoutingTrace, folder: Path, tmp_path: Path
) -> None:
    """Converting it gives the bytes of the trace written at once."""
    write(load(folder), tmp_path / "one.safetensors")
    write(trace, tmp_path / "other.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (
        tmp_path / "other.safetensors"
    ).read_bytes()
