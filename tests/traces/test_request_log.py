"""Recorded arrivals are read exactly, and a bad line is named."""

import gzip
from pathlib import Path

import pytest

from moesim.traces import TraceError
from moesim.traces.request_log import load_requests

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def put(folder: Path, name: str, text: str) -> Path:
    """Write a log, compressed if its name says so."""
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_an_azure_log_is_read_to_the_digit(tmp_path: Path) -> None:
    """Times count from the first request, the seventh decimal included."""
    rows = "2023-11-16 23:59:59.9999999,374,44\n2023-11-17 00:00:00.0000001,396,109\n"
    log = load_requests(put(tmp_path, "conv.csv", AZURE + rows))
    assert log.arrival_ns_R.tolist() == [0, 200]
    assert log.prompt_tokens_R.tolist() == [374, 396]
    assert log.output_tokens_R.tolist() == [44, 109]


def test_a_mooncake_log_is_read_compressed_or_not(tmp_path: Path) -> None:
    """Milliseconds become nanoseconds, and other keys are left alone."""
    text = '{"timestamp": 3, "input_length": 7, "output_length": 2, "hash_ids": [1]}\n'
    text += '{"timestamp": 5, "input_length": 8, "output_length": 1}\n'
    for name in ("mooncake.jsonl", "mooncake.jsonl.gz"):
        log = load_requests(put(tmp_path, name, text))
        assert log.arrival_ns_R.tolist() == [0, 2_000_000]
        assert log.prompt_tokens_R.tolist() == [7, 8]


def test_a_plain_log_gives_seconds(tmp_path: Path) -> None:
    """Anybody's log: seconds, prompt and output tokens; only the first requests if so asked."""
    text = "arrived_s,prompt_tokens,output_tokens\n10.5,3,1\n11.25,4,2\n12,5,3\n"
    log = load_requests(put(tmp_path, "own.csv", text), requests=2)
    assert log.arrival_ns_R.tolist() == [0, 750_000_000]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\n1,2\n", "line 1: expected the columns TIMESTAMP"),
        (AZURE + "2023-11-16 18:15:46,374\n", "line 2: '2023-11-16 18:15:46,374'"),
        (AZURE + "yesterday,374,1\n", "line 2: 'yesterday,374,1'"),
        (AZURE + "2023-11-16 18:15:46,374,0\n", "line 2: 374 prompt and 0 output tokens"),
        (
            AZURE + "2023-11-16 18:15:46,1,1\n2023-11-16 18:15:45,1,1\n",
            "line 3: earlier than the line before",
        ),
        (AZURE, "no requests in it"),
        ('{"timestamp": 3}\n', "line 1: expected an object with timestamp"),
        (
            '{"timestamp": 3, "input_length": 3.9, "output_length": 1}\n',
            "line 1: expected an object with timestamp",
        ),
        (AZURE + f"2023-11-16 18:15:46,{2**63},1\n", "line 2: "),
        (AZURE + f"2023-11-16 18:15:46,1,{'9' * 200_000}\n", "line 2: "),
        (
            f'{{"timestamp": 3, "input_length": {2**63}, "output_length": 1}}\n',
            "line 1: expected an object with timestamp",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: str) -> None:
    """One line says which file and line, what is there, and what would do."""
    path = put(tmp_path, "log.csv", text)
    with pytest.raises(TraceError, match="log.csv") as caught:
        load_requests(path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["cut", "changed"])
def test_a_damaged_compressed_log_is_named(tmp_path: Path, fault: str) -> None:
    """A download that broke off, or a byte that changed, is one line."""
    path = put(tmp_path, "log.csv.gz", AZURE + "2023-11-16 18:15:46,374,1\n" * 500)
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(path.read_bytes()[:60] if fault == "cut" else content)
    with pytest.raises(TraceError, match="log.csv.gz: damaged .*; copy it again") as caught:
        load_requests(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The system's own reason is given."""
    with pytest.raises(TraceError, match="No such file"):
        load_requests(tmp_path / "none.csv")


def test_the_shared_logs_are_read_whole(shared_data: Path) -> None:
    """The recorded logs of Azure and Mooncake give as many requests as they have lines."""
    folder = shared_data / "requests"
    expected = {
        "AzureLLMInferenceTrace_conv.csv": 19_366,
        "AzureLLMInferenceTrace_code.csv": 8_819,
    }
    for name, requests in expected.items():
        assert requests == len(load_requests(folder / name).arrival_ns_R)
    mooncake = load_requests(folder / "mooncake_conversation_trace.jsonl.gz", requests=100)
    assert mooncake.prompt_tokens_R[0] == 6758
