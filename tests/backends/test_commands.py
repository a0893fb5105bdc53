"""``moesim record`` as a user meets it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from moesim.backends.commands import record
from moesim.backends.reference.vocabulary import make_tokenizer
from moesim.simulator.errors import InputError, UnavailableError
from moesim.simulator.memory import MemorySpec
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import prepare
from moesim.traces import load

APP = typer.Typer()
APP.command()(record)


def run(*words: object) -> Any:
    """Run the command in this process."""
    return CliRunner().invoke(APP, [str(word) for word in words])


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Return a prompts file of two tasks."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "abc", "task": "x"}\n{"prompt": "de", "task": "y"}\n')
    return path


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[[str], Any]) -> Path:
    """Return the folder of a tiny Mixtral with the byte-level tokenizer."""
    path = tmp_path / "tiny-mixtral"
    make_model("Mixtral").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def test_a_folder_is_recorded(tmp_path: Path, folder: Path, prompts: Path) -> None:
    """The trace names model, tasks and sampling, holds the default signals, and repeats."""
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    for output in (first, second):
        done = run(folder, "--prompts", prompts, "-o", output, "--new-tokens", 4, "--device", "cpu")
        assert done.exit_code == 0, done.output
    assert first.read_bytes() == second.read_bytes()
    trace = load(first)
    assert trace.header.model == "tiny-mixtral"
    assert str(trace.header.revision).startswith("sha256:")
    assert trace.task_R == ("x", "y")
    assert trace.header.sampling["method"] == "greedy"
    assert {"router_probs_TLE", "look_in_TLHM", "look_in_score_TLHM", "token_T"} == set(
        trace.signals
    )
    assert trace.signals["token_T"][:4].tolist() == [256, 97, 98, 99]


def test_signals_can_be_left_out(tmp_path: Path, folder: Path, prompts: Path) -> None:
    """``--signals none`` writes ids and gates alone."""
    output = tmp_path / "bare.safetensors"
    done = run(
        folder,
        "--prompts",
        prompts,
        "-o",
        output,
        "--new-tokens",
        2,
        "--signals",
        "none",
        "--max-prompts",
        1,
    )
    assert done.exit_code == 0, done.output
    trace = load(output)
    assert dict(trace.signals) == {}
    assert trace.requests == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--signals", "router_prob"], "no signal 'router_prob'; did you mean 'router_probs'?"),
        (["-o", "trace.csv"], "trace.csv: give a file in an existing folder that ends in"),
        (["-o", "nowhere/trace.npz"], "give a file in an existing folder"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: No such file"),
        (["--temperature", "inf"], "--temperature inf: give a finite number"),
        (["--device", "tpu9000"], "no device 'tpu9000'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    tmp_path: Path, prompts: Path, words: list[str], message: str
) -> None:
    """The error is the user's, in one line, and no file is left."""
    if "--device" in words:
        pytest.importorskip("torch", reason="torch says which devices there are")
    done = run("no/model", "--prompts", prompts, "-o", tmp_path / "t.npz", *words)
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)
    assert [prompts] == list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "./nowhere: no such folder, and not a hub id"),
        ("a/b/c", "a/b/c: no such folder, and not a hub id"),
    ],
)
def test_a_model_that_is_not_there_is_named(
    tmp_path: Path, prompts: Path, model: str, message: str
) -> None:
    """A folder that does not exist is never looked up on the hub."""
    pytest.importorskip("transformers", reason="the check is behind the import")
    done = run(model, "--prompts", prompts, "-o", tmp_path / "t.npz", "--device", "cpu")
    assert isinstance(done.exception, InputError)
    assert message in str(done.exception)


def test_a_folder_without_a_model_is_named(tmp_path: Path, prompts: Path) -> None:
    """What transformers says of a bad folder arrives as one line."""
    pytest.importorskip("transformers", reason="transformers loads the folder")
    done = run(tmp_path, "--prompts", prompts, "-o", tmp_path / "t.npz", "--device", "cpu")
    assert isinstance(done.exception, InputError)
    assert "transformers can't load it" in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_torch_or_transformers_the_exit_code_is_3(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """One line says what to install; the command line ends with 3, which CI tells from failure."""
    for name in [name for name in sys.modules if name.startswith("moesim.backends.")]:
        if name.rpartition(".")[2] in {"loading", "recorder", "taps", "models"}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    done = run("no/model", "--prompts", prompts, "-o", tmp_path / "t.npz")
    assert isinstance(done.exception, UnavailableError)
    assert str(done.exception).startswith(f"recording needs {missing}; install it with")


def test_a_gpu_that_is_not_there_is_exit_code_3(tmp_path: Path, prompts: Path) -> None:
    """A device beyond those present is unavailable, not a crash."""
    pytest.importorskip("torch", reason="torch counts the devices")
    done = run("no/model", "--prompts", prompts, "-o", tmp_path / "t.npz", "--device", "cuda:99")
    assert isinstance(done.exception, UnavailableError)
    assert str(done.exception).startswith("device cuda:99: this machine has")


def test_a_lossy_system_is_recorded_as_a_closed_loop(
    tmp_path: Path, folder: Path, prompts: Path
) -> None:
    """The trace is bound to system and budget, repeats byte by byte, and replays as closed."""
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    common = ("--prompts", prompts, "--new-tokens", 4, "--device", "cpu", "--system", "emoe")
    for output in (first, second):
        done = run(folder, *common, "--slots", "50%", "-o", output, "--licence", "MIT")
        assert done.exit_code == 0, done.output
    assert first.read_bytes() == second.read_bytes()
    trace = load(first)
    assert (trace.header.model, trace.header.licence) == ("tiny-mixtral", "MIT")
    bound = trace.header.closed_loop
    assert bound is not None
    assert (bound.system, bound.slots) == ("emoe", 12)
    spec = RunSpec(
        trace=trace,
        trace_name="a",
        hardware="rtx4090",
        policies=bound.policies,
        memory=MemorySpec(slots="50%"),
    )
    assert prepare(spec).replay().row["loop"] == "closed"


def test_a_lossless_system_closes_no_loop(tmp_path: Path, folder: Path, prompts: Path) -> None:
    """Its routes are those of any recording; and a budget needs a system."""
    words = (folder, "--prompts", prompts, "-o", tmp_path / "a.npz", "--slots", "50%")
    done = run(*words, "--system", "emoe-lossless")
    assert isinstance(done.exception, InputError)
    assert "it changes no route" in str(done.exception)
    done = run(*words)
    assert isinstance(done.exception, InputError)
    assert "name it with --system" in str(done.exception)
