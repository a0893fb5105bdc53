"""Serving as a user asks for it."""

import json
from pathlib import Path

import pytest

ARRIVALS = ("--arrivals", "poisson:rate=5", "--slots", "40%")


def test_requests_that_arrive_are_reported(simulate) -> None:
    """The table says who was served, what was promised, and apart how long requests queued."""
    done = simulate(*ARRIVALS, "--max-batch", 2, "--chunk", 64, "--slo", "ttft=1,tpot=500")
    assert done.code == 0
    assert "schedule fcfs:max_batch=2,chunk=64/resident_first" in " ".join(done.out.split())
    assert "3 served, 0 refused" in done.out
    for name in ("E2E", "queueing", "service", "SLO", "batch"):
        assert f"\n{name} " in done.out
    assert "the routing of 3 requests is drawn from 3 of 15 recorded sequences" in " ".join(
        done.out.split()
    )
    assert "given this batching" in " ".join(done.out.split())


def test_the_row_says_how_requests_arrived(simulate, tmp_path: Path) -> None:
    """A log is named without its folder; queueing, E2E and KV memory have their fields."""
    log = tmp_path / "own.csv"
    log.write_text("arrived_s,prompt_tokens,output_tokens\n0,90,3\n0,20,2\n0.001,30,2\n")
    done = simulate("--arrivals", f"file:{log}", "--slots", "40%", "--kv", "1GiB", "--json", "-")
    row = json.loads(done.out)
    assert row["arrivals"] == "file:own.csv"
    assert (row["requests"], row["output_tokens"], row["tokens"]) == (3, 7, 140 + 7 - 3)
    assert row["vram_kv_bytes"] == 2**30
    assert 0 < row["peak_kv_bytes"] < 2**30
    assert row["mean_e2e_ms"] == pytest.approx(row["mean_queue_ms"] + row["mean_service_ms"])
    assert 0 < row["bound_tpot_ms"] <= row["mean_tpot_ms"]


def test_the_same_arrivals_have_the_same_run(simulate) -> None:
    """The hash of the run changes with seed, batch, promise and memory, and with nothing else."""

    def run_id(*words: object) -> str:
        return json.loads(simulate(*ARRIVALS, "--json", "-", *words).out)["run_id"]

    others = [("--seed", 1), ("--max-batch", 3), ("--slo", "ttft=5"), ("--kv", "1GiB")]
    ids = [run_id(), *(run_id(*words) for words in others)]
    assert len(set(ids)) == len(ids)
    assert ids[0] == run_id()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-batch", 4), "--max-batch is for requests that arrive; add --arrivals"),
        (("--slo", "ttft=5"), "--slo is for requests that arrive; add --arrivals"),
        (("--kv", "1KiB"), "--kv is for requests that arrive; add --arrivals"),
        ((*ARRIVALS, "--batching", "fifo"), "no batching 'fifo'; "),
        (
            (*ARRIVALS, "--batching", "cache_prior"),
            "there are: fcfs, shortest_first, slo_first, task_aware",
        ),
        (
            (*ARRIVALS, "--batching", "fcfs:max_batch=4", "--max-batch", 8),
            "option max_batch is given twice",
        ),
        (
            (*ARRIVALS, "--schedule", "fcfs/on_demand", "--chunk", 8),
            "--chunk: --schedule fcfs/on_demand forms batches itself",
        ),
        ((*ARRIVALS, "--cache", "belady"), "cache policy belady sees the future, but in which"),
        ((*ARRIVALS, "--kv-reserve", "none"), "--kv-reserve none: expected whole or prompt"),
        (("--arrivals", "file:none.csv"), "none.csv: No such file or directory"),
    ],
)
def test_what_does_not_go_together_is_one_line(simulate, words, message: str) -> None:
    """The option and the way out are named."""
    done = simulate(*words)
    assert done.code == 1
    assert message in done.err
    assert done.err.count("\n") == 1


def test_a_served_run_can_be_drawn(simulate, tmp_path: Path) -> None:
    """Plot and timeline are written as of any run."""
    plot, timeline = tmp_path / "run.png", tmp_path / "run.json"
    done = simulate(*ARRIVALS, "--plot", plot, "--timeline", timeline, "--quiet")
    assert done.code == 0
    assert plot.stat().st_size > 1000
    assert timeline.stat().st_size > 1000


def test_plan_says_what_fits(cli, sample: Path) -> None:
    """A line for each machine and question, with the division of VRAM."""
    costs = ("--cost-of", "mixtral-8x7b", "--format", "int4", "--slots", "25%")
    machines = ("--hardware", "rtx4090", "--hardware", "h100-sxm")
    fits = ("--fit", "prompt", "--fit", "batch", "--context-tokens", 2048)
    done = cli("plan", sample, *costs, *machines, *fits)
    assert done.code == 0
    text = " ".join(done.out.split())
    assert text.count("tokens, 1 at a time (experts ") == 2
    assert text.count("requests of 2048 tokens together (experts ") == 2


def test_plan_wants_memory_or_an_objective(cli, sample: Path) -> None:
    """A room for experts beside an objective is refused: it is what is searched for."""
    done = cli("plan", sample, "--hardware", "rtx4090", "--tpot", 5, "--slots", "25%")
    assert done.code == 1
    assert "--slots goes with --fit prompt or --fit batch" in done.err


def test_a_sweep_serves(cli, sample: Path, tmp_path: Path) -> None:
    """The options of serving are keys of a sweep; a log is found from the sweep's folder."""
    (tmp_path / "own.csv").write_text("arrived_s,prompt_tokens,output_tokens\n0,9,3\n1,20,2\n")
    (tmp_path / "sweep.yaml").write_text(
        f"base: {{trace: {sample}, hardware: rtx4090, cost_of: mixtral-8x7b, format: int4}}\n"
        'grid:\n  arrivals: ["file:own.csv"]\n  max_batch: [1, 2]\n  slots: ["40%"]\n'
    )
    done = cli("sweep", tmp_path / "sweep.yaml", "--output", tmp_path / "out.csv")
    assert done.code == 0, done.err
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert len(lines) == 3
    assert all("file:own.csv" in line for line in lines[1:])
