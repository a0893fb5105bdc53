"""Bad input gets one line that names the place, the value and the way out, and writes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import load, write

SIMULATE = ("--hardware", "rtx4090", "--cost-of", "mixtral-8x7b", "--format", "int4")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--slots", "25%", "--cache", "lruu"), "no cache policy 'lruu'; did you mean 'lru'?"),
        (("--slots", "25%", "--prefetch", "magic"), "no prefetch policy 'magic'"),
        (("--slots", "25%", "--schedule", "magic"), "no schedule policy 'magic'"),
        (("--slots", "25%", "--system", "emoee"), "no system 'emoee'"),
        (("--slots", "25%", "--engine", "warp"), "no engine 'warp'"),
        (("--slots", "25%", "--runtime", "warp"), "warp"),
        (("--slots", "25%", "--cache", "lru:scop=global"), "no option of cache policy lru 'scop'"),
        (("--slots", "25%", "--cache", "lru:scope=all"), "expected global | per_layer"),
        (("--slots", "25%", "--cache", "lru:scope"), "option scope has no value"),
        (
            ("--slots", "25%", "--cache", "lru:scope=global,scope=per_layer"),
            "cache policy lru: option scope is given twice",
        ),
        (("--slots", "25%", "--ask", "a=1ms", "--ask", "a=2ms"), "a is given twice"),
        (("--slots", "25%", "--ask", "a=soon"), "expected NAME=TIME"),
        (("--slots", "25%", "--ask", "a=1ms"), "--ask a=1ms: no policy of this run asks"),
        (("--slots", "25%", "--cache", "insert_cap"), "guards another"),
        (("--slots", "25%", "--cache", "lru/lfu"), "guards no other"),
        (("--slots", "25%", "--cache", "static"), "--profile-trace"),
        (("--slots", "25%", "--policy-module", "nowhere.py:X"), "nowhere.py: no such file"),
        (("--slots", "a few"), "--slots a few"),
        (("--slots", "150%"), "--slots 150%"),
        (("--slots", "3"), "top-k|experts of one token need"),
        (("--vram", "1GiB"), "hold no experts"),
        (("--vram", "12 bananas"), "--vram 12 bananas"),
        (("--vram", "12GiB", "--slots", "25%"), "give one of"),
        (("--slots", "100%", "--format", "bf16"), "usable VRAM"),
        (("--slots", "inf%"), "--slots inf%"),
        (("--slots", "0"), "--slots 0"),
        (("--vram", "64GiB"), "usable VRAM"),
        (("--slots", "25%", "--model", "olmoe"), "not both"),
        (
            (
                "--hardware",
                "a100-40gb",
                "--slots",
                "5",
                "--format",
                "bf16",
                "--cost-of",
                "mixtral-8x22b",
            ),
            "or one with nvme in its profile",
        ),
        (("--slots", "25%", "--ram", "80GiB"), "rtx4090 has 64GiB of RAM"),
        (("--slots", "25%", "--ram", "12 bananas"), "--ram 12 bananas"),
        (("--slots", "25%", "--ram", "1MiB"), "host cache: 1MiB hold no expert"),
        (("--slots", "25%", "--ram", "4GiB", "--host-cache", "lruu"), "did you mean 'lru'?"),
        (("--slots", "25%", "--host-cache", "lruu"), "did you mean 'lru'?"),
        (("--slots", "25%", "--ram", "4GiB", "--host-cache", "static"), "--profile-trace"),
        (
            ("--slots", "25%", "--ram", "4GiB", "--host-cache", "adaptive_split/lru"),
            "host cache: AdaptiveSplit",
        ),
        (
            ("--slots", "25%", "--ram", "4GiB", "--cache", "adaptive_split/lru"),
            "tiers below VRAM hold whole",
        ),
        (("--slots", "25%", "--ram", "4GiB", "--engine", "compiled"), "use --engine clock"),
        (("--slots", "25%", "--peer-cache", "4GiB"), "rtx4090 has no link from another GPU"),
        (
            ("--slots", "25%", "--hardware", "rtx3090x6", "--peer-cache", "24GiB"),
            "GPU 1 of rtx3090x6 has",
        ),
        (("--slots", "25%", "--peer-policy", "lru"), "give --peer-cache"),
        (("--slots", "25%", "--plot", "out.gif"), "a plot ends in one of"),
        (("--slots", "25%", "--cache", "lru:scope=per_layer", "--slots", "20"), "at least"),
        (("--slots", "25%", "--json", "nowhere/out.json"), "there is no folder nowhere"),
        (("--slots", "25%", "--csv", "nowhere/out.csv"), "there is no folder nowhere"),
    ],
)
def test_simulate_refuses_in_one_line(cli, sample, words, expected):
    """Every wrong argument is one line on stderr, exit code 1 and nothing on stdout."""
    outcome = (
        cli("simulate", sample, *SIMULATE, *words, "--json", "-")
        if "--json" not in words
        else cli("simulate", sample, *SIMULATE, *words)
    )
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("moesim: ")
    assert any(part in outcome.err for part in expected.split("|")) or expected in outcome.err


def test_an_unknown_machine_lists_those_there_are(cli, sample):
    """A wrong machine's name is answered with the right ones."""
    outcome = cli("simulate", sample, "--hardware", "rtx4091", "--slots", "25%")
    assert outcome.code == 1
    assert "rtx4091" in outcome.err
    assert "rtx4090" in outcome.err


def test_a_trace_of_an_unknown_model_says_how_to_give_one(cli, sample, tmp_path: Path):
    """Without a shape or byte counts the error says what would do."""
    found = load(sample)
    bare = found.header.model_copy(update={"expert_bytes": None, "dense_bytes": None})
    write(replace(found, header=bare), tmp_path / "bare.npz")
    outcome = cli("simulate", tmp_path / "bare.npz", "--hardware", "rtx4090", "--slots", "25%")
    assert outcome.code == 1
    assert "--cost-of" in outcome.err
    assert "--model" in outcome.err


def test_a_trace_without_the_signal_is_refused_by_name(cli, shared_data: Path):
    """A prefetcher that reads look-ahead is refused on a trace that has none."""
    outcome = cli(
        *("simulate", shared_data / "traces" / "gpt-oss-20b", "--hardware", "rtx4090"),
        *("--slots", "25%", "--prefetch", "next_gate"),
    )
    assert outcome.code == 1
    assert "look_in_TLHM" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("fault", ["truncated", "out_of_range", "not_a_trace", "missing", "empty"])
def test_a_faulty_trace_is_one_line(cli, sample: Path, tmp_path: Path, fault: str):
    """A faulty trace names the file and what is wrong, whatever command reads it."""
    bad = tmp_path / "bad.npz"
    if fault == "truncated":
        bad.write_bytes(sample.read_bytes()[:5000])
    elif fault == "out_of_range":
        arrays = dict(np.load(sample, allow_pickle=False))
        arrays["expert_TLK"] = arrays["expert_TLK"].copy()
        arrays["expert_TLK"][7, 3, 0] = 99
        np.savez_compressed(bad, **arrays)
    elif fault == "not_a_trace":
        bad.write_text("hello\n")
    elif fault == "empty":
        bad.touch()
    out = tmp_path / "out.safetensors"
    for words in (
        ("trace", "validate", bad),
        ("trace", "convert", bad, out),
        ("trace", "info", bad),
    ):
        outcome = cli(*words)
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1
        assert "bad.npz" in outcome.err
    assert not out.exists()
    if fault == "out_of_range":
        assert "99" in outcome.err
        assert "7" in outcome.err


def test_a_profile_with_an_unknown_key_or_unit_is_one_line(cli, repository: Path, tmp_path: Path):
    """Unknown keys and units name file, key and value."""
    good = (repository / "hardware_profiles" / "rtx4090.yaml").read_text()
    bad = tmp_path / "mine.yaml"
    for old, new, named in (
        ("gpu:\n", "gpu:\n  vrm: 24GiB\n", "vrm"),
        ("24GiB", "24 gibibananas", "24 gibibananas"),
        ("24GiB", "24", "24"),
    ):
        bad.write_text(good.replace(old, new, 1).replace("name: rtx4090", "name: mine", 1))
        outcome = cli("profile", "check", bad)
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1
        assert "mine.yaml" in outcome.err
        assert named in outcome.err


def test_wrong_usage_exits_with_two(cli):
    """A missing argument or an unknown option is exit code 2."""
    assert cli("simulate").code == 2
    assert cli("simulate", "--nonsense").code == 2
    assert cli("nonsense").code == 2


def test_a_written_trace_is_whole_or_absent(sample: Path, tmp_path: Path):
    """Converting writes nothing but the finished file."""
    out = tmp_path / "t.safetensors"
    write(load(sample), out)
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
    assert json.loads(json.dumps(load(out).content_hash())) == load(sample).content_hash()
