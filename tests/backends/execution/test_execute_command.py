"""``moesim execute``: text and figures out, errors in one line, light without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from moesim.backends.execute_command import execute
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.results import request_times
from moesim.simulator.runs import prepare
from moesim.simulator.sweeps.file import RunOptions
from moesim.traces import load

app = typer.Typer()
app.command()(execute)


@pytest.fixture(scope="module")
def weights(repository: Path) -> str:
    """Return the folder of the reference model."""
    return str(repository / "backends" / "reference" / "weights")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Return a file of two prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("The king said\nfor i in range(\n")
    return path


def run(*arguments: object) -> str:
    """Run the command and return what it printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_it_prints_text_and_figures(weights: str, prompts: Path) -> None:
    """The generated text comes first, then TTFT, TPOT, hits and misses."""
    pytest.importorskip("torch", reason="it runs a real model")
    options = ("--prompts", prompts, "--slots", "25%", "--new-tokens", 5, "--ignore-eos")
    printed = run(weights, *options, "--system", "mixtral-offloading")
    last = printed.strip().split("\n")[-4:]
    assert last[0].startswith("mixtral-offloading: ")
    assert "TTFT mean" in last[1]
    assert "TPOT mean" in last[1]
    assert last[2].startswith("hits ")


def test_text_does_not_depend_on_the_system(weights: str, prompts: Path, tmp_path: Path) -> None:
    """Two systems and budgets print one text, and a trace of it can be served again."""
    pytest.importorskip("torch", reason="it runs a real model")
    common = ("--prompts", prompts, "--new-tokens", 5, "--ignore-eos", "--json", "-")
    trace = tmp_path / "served.npz"
    first = json.loads(run(weights, *common, "--cache", "lru", "--slots", 96, "-o", trace))
    second = json.loads(run(weights, *common, "--system", "on-demand", "--expert-budget", "8MiB"))
    forced = json.loads(
        run(weights, "--routes", trace, "--cache", "belady", "--slots", 96, "--json", "-")
    )

    assert first["texts"] == second["texts"]
    assert all(first["texts"])
    assert second["hits"] == 0
    assert first["demands"] == second["demands"] == forced["demands"]
    assert forced["misses"] < first["misses"] < second["misses"]
    assert first["mean_tpot_ms"] > 0


def test_another_gpu_lends_memory(weights: str, prompts: Path) -> None:
    """The text stays, misses come from there, and the row says how many bytes."""
    pytest.importorskip("torch", reason="it runs a real model")
    common = (weights, "--prompts", prompts, "--new-tokens", 5, "--ignore-eos", "--slots", 96)
    alone = json.loads(run(*common, "--json", "-"))
    lent = ("--peer-cache", "6MiB", "--peer-policy", "static:order=uniform")
    beside = json.loads(run(*common, *lent, "--json", "-"))

    assert beside["texts"] == alone["texts"]
    assert beside["misses"] == alone["misses"]
    assert beside["bytes_total"] > beside["bytes_peer"] > alone["bytes_peer"] == 0
    assert (beside["peer_cache"], beside["peer_cache_bytes"]) == (lent[-1], 6 << 20)
    assert beside["peer_busy_ns"] > alone["peer_busy_ns"] == 0
    assert "from the other GPU " in run(*common, *lent)


def test_experts_live_on_two_gpus(weights: str, prompts: Path) -> None:
    """The text stays, and the row says how many there are and what went between them."""
    pytest.importorskip("torch", reason="it runs a real model")
    common = (weights, "--prompts", prompts, "--new-tokens", 5, "--ignore-eos", "--slots", 96)
    alone = json.loads(run(*common, "--json", "-"))
    both = json.loads(run(*common, "--gpus", 2, "--json", "-"))
    assert both["texts"] == alone["texts"]
    assert (alone["gpus"], alone["placement"], alone["bytes_exchanged"]) == (1, "", 0)
    assert (both["gpus"], both["placement"]) == (2, "round_robin")
    assert both["bytes_exchanged"] > 0


def test_prompts_are_served_together(weights: str, prompts: Path, tmp_path: Path) -> None:
    """A batch prints the text of one after another in fewer steps, cut prompts in a few more."""
    pytest.importorskip("torch", reason="it runs a real model")
    common = ("--prompts", prompts, "--new-tokens", 5, "--ignore-eos", "--json", "-", "--slots", 96)
    one = json.loads(run(weights, *common))
    together = json.loads(run(weights, *common, "--max-batch", 2))
    trace = tmp_path / "served.npz"
    pieces = json.loads(run(weights, *common, "--max-batch", 2, "--chunk", 3, "-o", trace))

    assert one["texts"] == together["texts"] == pieces["texts"]
    assert one["steps"] == 10
    assert together["steps"] == 6
    assert pieces["steps"] > 6
    assert together["schedule"] == "fcfs:max_batch=2/resident_first"
    assert load(trace).output_tokens_R.tolist() == [5, 5]


def test_prompts_arrive(weights: str, prompts: Path) -> None:
    """The row has the fields of a replay's, and the summary says how long requests queued."""
    pytest.importorskip("torch", reason="it runs a real model")
    common = (weights, "--prompts", prompts, "--new-tokens", 4, "--ignore-eos", "--slots", 96)
    arrivals = ("--arrivals", "poisson:rate=50,order=recorded", "--requests", 6)
    row = json.loads(
        run(*common, *arrivals, "--max-batch", 2, "--slo", "ttft=60000,tpot=9000", "--json", "-")
    )
    texts = json.loads(run(*common, "--json", "-"))["texts"]
    assert row.keys() >= request_times.FIELDS.keys()
    assert row["texts"] == texts * 3
    assert row["schedule"] == "fcfs:max_batch=2/resident_first"
    assert (row["requests"], row["refused"], row["slo_attainment"]) == (6, 0, 1.0)
    assert row["requests_per_s"] == pytest.approx(6e9 / row["span_ns"])
    printed = run(*common, *arrivals)
    assert "requests: 6 served, 0 refused; at most" in printed
    assert "queueing: " in printed


def test_routes_arrive_as_in_a_replay(weights: str, prompts: Path, tmp_path: Path) -> None:
    """The same trace, spec and seed give the same requests as a replay: their number of demands."""
    pytest.importorskip("torch", reason="it runs a real model")
    trace = tmp_path / "served.npz"
    run(weights, "--prompts", prompts, "--new-tokens", 5, "--ignore-eos", "-o", trace)
    arrivals = "users:users=2,requests=5,prompt=9,output=6"
    options = ("--slots", "25%", "--arrivals", arrivals, "--chunk", 4, "--json", "-")
    row = json.loads(run(weights, "--routes", trace, *options))
    replay = RunOptions(
        trace=str(trace),
        hardware="h100-sxm",
        slots="25%",
        arrivals=arrivals,
        chunk=4,
    )
    replayed = prepare(replay.run_spec()).replay().row
    same = ("arrivals", "stitched", "requests", "steps", "tokens", "demands", "hits", "bytes_total")
    assert {key: row[key] for key in same} == {key: replayed[key] for key in same}
    assert row["stitched"] == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--requests", "3"), InputError, "--requests 3: so many would arrive; add --arrivals"),
        (("--slo", "ttft=5"), InputError, "--slo is for requests that arrive; add --arrivals"),
        (("--arrivals", "users:requests=2", "--kv", "much"), InputError, "--kv much: "),
        (
            ("--max-batch", "2", "--schedule", "fcfs:max_batch=2/on_demand"),
            InputError,
            "--max-batch 2: the schedule fcfs.*forms its batches",
        ),
        (("--backend", "tpu"), UnknownNameError, "no backend 'tpu'"),
        (("--routes", "x.npz"), InputError, "either --prompts FILE or --routes TRACE"),
        (("-o", "x.csv"), InputError, "x.csv: give a file that ends in"),
        (("--json", "nowhere/x.json"), InputError, "there is no folder nowhere"),
        (("--slots", "0"), InputError, "--slots 0: expected a number"),
        (("--vram", "1MiB"), InputError, "hold no experts"),
        (("--slots", "5", "--vram", "1GiB"), InputError, "give one of --vram"),
        (("--schedule", "cheaper"), InputError, "--hardware"),
        (("--peer-policy", "lru"), InputError, "no GPU lends VRAM; give --peer-cache"),
        (("--peer-cache", "much"), InputError, "--peer-cache much: "),
        (("--gpus", "2", "--placement", "nowhere"), UnknownNameError, "by_coactivation"),
        (("--gpus", "2", "--backend", "cuda"), InputError, "graphs is on one GPU; take --backend"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    weights: str, prompts: Path, options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """A wrong option names itself and the way out."""
    pytest.importorskip("torch", reason="it runs a real model")
    arguments = [weights, "--prompts", str(prompts), "--new-tokens", "2", *options]
    with pytest.raises(error, match=message) as caught:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "\n" not in str(caught.value)


def test_without_torch_it_says_so_and_exits_3(weights: str, prompts: Path) -> None:
    """A machine without torch gets the line that installs it."""
    code = (
        "import sys; sys.modules['torch'] = None\nfrom moesim.simulator.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "execute", weights, "--prompts", str(prompts)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "pip install 'moesim[torch]'" in done.stderr


def test_its_module_is_light() -> None:
    """Importing the command imports neither torch nor numpy."""
    code = (
        "import sys, moesim.backends.execute_command\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'simpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_lossy_system_says_what_it_changed(weights: str, prompts: Path) -> None:
    """The text is another than the whole model's, and the summary says how many choices went."""
    pytest.importorskip("torch", reason="it runs a real model")
    common = (weights, "--prompts", prompts, "--new-tokens", 8, "--ignore-eos", "--system", "emoe")
    printed = run(*common, "--slots", "30%")
    assert "of the router's choices went to other experts, 0 to none" in printed
    few = json.loads(run(*common, "--slots", "30%", "--json", "-"))
    everything = json.loads(run(*common, "--slots", "100%", "--json", "-"))
    assert few["texts"] != everything["texts"]
    assert few["rerouted"] > everything["rerouted"] == 0
