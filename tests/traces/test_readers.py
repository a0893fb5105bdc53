"""Any file is recognised by its content, or the line says what would be."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import moesim.traces
from moesim.traces import TraceError, load, parse_mapping
from moesim.traces.readers import formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"a,b\n1,2\n"),
        ("t.json", b'{"a": 1}'),
        ("t.npz", b"PK\x03\x04" + b"\0" * 60),
        ("t.safetensors", b"\x40" + b"\0" * 7 + b'{"a": 1}'),
        ("t.txt", b"hello"),
        ("t.bin", bytes(range(256))),
    ],
)
def test_unknown_content_lists_the_formats(name: str, content: bytes, tmp_path: Path) -> None:
    """One line lists every format and the way to read other tables."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TraceError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(
        f"{path}: not a trace of a known format (moesim, moesim-chunks, bigmoe_csv, "
    )
    assert all(known in message for known in formats())
    assert message.endswith("--map token=COL,layer=COL,experts=COL")
    assert "\n" not in message


def test_an_empty_file_and_no_file_are_told(tmp_path: Path) -> None:
    """A file of no bytes, a path that is not there and an empty folder are one line each."""
    (tmp_path / "t.npz").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(TraceError, match=r"t\.npz: the file is empty; record or copy it again$"):
        load(tmp_path / "t.npz")
    with pytest.raises(TraceError, match=r"x\.npz: no such file or folder; give the path of a"):
        load(tmp_path / "x.npz")
    with pytest.raises(TraceError, match=r"folder: not a trace of a known format"):
        load(tmp_path / "folder")


def test_every_format_is_one_described_file(repository: Path) -> None:
    """Each file in formats/ is listed with the first line of its docstring, and nothing else is."""
    files = {file.stem for file in (repository / "traces" / "formats").glob("[a-z]*.py")}
    listed = formats()
    assert files | {"moesim", "moesim-chunks"} == set(listed)
    assert all(line and len(line) < 100 for line in listed.values())


TEXTS = {
    "bigmoe_csv": (
        "# route_trace v1\n# model=m n_expert=4 n_expert_used=2\n"
        "turn,phase,step,layer,slot,expert,weight\n0,0,0,1,0,3,0.7\n0,0,0,1,1,2,0.3\n"
    ),
    "hf_selection_json": '[{"0": null, "1": [[3, 1], [0, 2]]}, {"0": null, "1": [[2, 1]]}]',
    "vllm_routed": (
        '{"model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "choices": '
        '[{"routed_experts": [[[0, 1]]]}], "prompt_routed_experts": [[[2, 3]]]}'
    ),
    "mapped": '{"token": 0, "layer": 1, "ids": [0, 1]}\n{"token": 1, "layer": 1, "ids": "2 3"}\n',
}


@pytest.mark.parametrize("name", TEXTS)
@given(data=st.data())
def test_damaged_text_never_surprises(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever a piece of a text file is replaced by, it loads or is refused in one line."""
    mapping = parse_mapping("token=token,layer=layer,experts=ids") if name == "mapped" else None
    path = tmp_path_factory.mktemp("damaged") / "t.txt"
    text = TEXTS[name]
    path.write_text(text)
    assert len(load(path, mapping=mapping).task_R) < 2
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(start + 4, len(text))))
    pieces = ["", "-", "7", "99999", "1e99", "x", ",", "[", "]", "null", "nan", '"', "\n", "é"]
    path.write_text(text[:start] + data.draw(st.sampled_from(pieces)) + text[stop:])
    try:
        load(path, mapping=mapping)
    except TraceError as error:
        assert str(error).startswith(str(path))  # noqa: PT017 - both outcomes are right
        assert "\n" not in str(error)  # noqa: PT017


def test_the_shipped_samples_load(repository: Path) -> None:
    """Every sample is a valid native trace with a licence; twins have 8 MiB, others 2 MiB each."""
    samples = [
        path
        for path in (repository / "traces" / "samples").iterdir()
        if path.suffix in (".npz", ".safetensors")
    ]
    assert samples
    twins_bytes = 0
    for path in samples:
        is_twin = path.name.startswith("twin-")
        header = load(path).header
        assert header.evidence == ("twin" if is_twin else "recorded")
        assert header.licence
        assert is_twin or path.stat().st_size <= 2 * 2**20
        twins_bytes += path.stat().st_size * is_twin
    assert twins_bytes <= 8 * 2**20


def test_the_examples_in_docstrings_hold() -> None:
    """Each example shown in a docstring of the package gives what it shows."""
    tried = 0
    for info in pkgutil.walk_packages(moesim.traces.__path__, "moesim.traces."):
        tried += doctest.testmod(importlib.import_module(info.name), raise_on_error=True).attempted
    tried += doctest.testmod(moesim.traces, raise_on_error=True).attempted
    assert tried > 4
