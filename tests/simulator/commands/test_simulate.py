"""``moesim simulate``: what it prints and writes."""

import csv
import gzip
import json
from pathlib import Path

import pytest

from moesim.simulator.results.rows import FIELDS

TIGHT = ("--slots", "25%")

DOCUMENTED = [
    "run_id",
    "trace",
    "model",
    "hardware",
    "system",
    "cache",
    "prefetch",
    "schedule",
    "slots",
    "expert_bytes",
    "steps",
    "tokens",
    "demands",
    "hits",
    "late_hits",
    "misses",
    "hit_rate",
    "decode_hit_rate",
    "bytes_demand",
    "bytes_prefetch_useful",
    "bytes_prefetch_late",
    "bytes_prefetch_wasted",
    "evictions",
    "partial_hits",
    "bytes_total",
    "bytes_rebalance",
    "bytes_initial",
    "bytes_peer",
    "bytes_nvme",
    "copies",
    "waves",
    "decision_ns",
    "rerouted",
    "skipped",
    "loop",
    "derived",
    "mean_tpot_ms",
    "p50_tpot_ms",
    "p99_tpot_ms",
    "mean_ttft_ms",
    "output_tokens_per_s",
    "link_busy_ns",
    "gpu_busy_ns",
    "host_busy_ns",
    "span_ns",
    "peak_vram_bytes",
    "bound_tpot_ms",
    "evidence",
    "notes",
]


def result_of(outcome) -> dict:
    """Return the row that a run with ``--json -`` printed."""
    assert outcome.err == ""
    assert outcome.code == 0
    return json.loads(outcome.out)


def test_the_table_names_what_a_person_looks_for(simulate):
    """The table has latency, demands, bytes by cause, busy shares, memory, bound and evidence."""
    outcome = simulate(*TIGHT)
    assert outcome.code == 0
    heads = [line.split("  ")[0].strip() for line in outcome.out.splitlines()]
    for head in (
        "policies",
        "TPOT",
        "TTFT",
        "speed",
        "demands",
        "copied",
        "busy",
        "peak VRAM",
        "bound",
        "evidence",
        "notes",
        "run",
    ):
        assert head in heads


def test_json_has_exactly_the_documented_keys(simulate):
    """JSON on stdout is flat and has every documented field, and nothing else."""
    row = result_of(simulate(*TIGHT, "--json", "-"))
    assert list(row) == list(FIELDS)
    assert set(DOCUMENTED) <= set(row)
    assert all(not isinstance(value, dict | list) for value in row.values())


def test_the_same_run_gives_the_same_bytes(simulate, tmp_path: Path):
    """Two runs write identical JSON, CSV rows and timelines."""
    written = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        simulate(
            *TIGHT,
            *("--system", "mixtral-offloading", "--json", folder / "r.json"),
            *("--csv", folder / "r.csv", "--timeline", folder / "t.json.gz"),
        )
        written.append([(folder / f).read_bytes() for f in ("r.json", "r.csv", "t.json.gz")])
    assert written[0] == written[1]


def test_sums_are_exact(simulate):
    """Bytes are the sum over causes, demands the sum over judgements."""
    row = result_of(simulate(*TIGHT, "--prefetch", "next_gate:width=4", "--json", "-"))
    causes = ("demand", "prefetch_useful", "prefetch_late", "prefetch_wasted", "rebalance")
    assert row["bytes_total"] == sum(row[f"bytes_{cause}"] for cause in causes)
    judged = ("hits", "late_hits", "partial_hits", "misses")
    assert row["demands"] == sum(row[name] for name in judged)
    assert row["bytes_prefetch_useful"] > 0
    assert row["hit_rate"] == round(row["hits"] / row["demands"], 9)


def test_two_hit_rates_give_two_times(simulate):
    """A bigger cache hits more and is faster."""
    small = result_of(simulate("--slots", "15%", "--json", "-"))
    large = result_of(simulate("--slots", "60%", "--json", "-"))
    assert small["hit_rate"] < large["hit_rate"]
    assert small["mean_tpot_ms"] > large["mean_tpot_ms"]


def test_twice_the_bytes_keep_the_link_twice_as_long(simulate):
    """int4 against int8 experts: the same copies of twice the bytes take twice the link's time."""
    narrow = result_of(simulate(*TIGHT, "--json", "-"))
    wide = result_of(simulate(*TIGHT, "--json", "-", "--format", "int8", "--ram", "64GiB"))
    assert narrow["copies"] == wide["copies"]
    byte_ratio = wide["bytes_total"] / narrow["bytes_total"]
    assert 1.8 < byte_ratio < 2.1
    assert wide["link_busy_ns"] / narrow["link_busy_ns"] == pytest.approx(byte_ratio, rel=0.001)


def test_every_small_copy_pays_its_own_latency(simulate):
    """Link time is bytes over bandwidth plus one latency for each copy."""
    row = result_of(simulate(*TIGHT, "--json", "-"))
    assert row["link_busy_ns"] > row["bytes_total"] / 25.0 + row["copies"] * 5_000 * 0.99


def test_an_unused_prefetch_costs_link_time(simulate):
    """A prefetcher that is always wrong moves more bytes and is no faster than none."""
    none = result_of(simulate(*TIGHT, "--json", "-"))
    wrong = result_of(
        simulate(*TIGHT, "--prefetch", "oracle:recall=0.05,precision=0.05", "--json", "-")
    )
    assert wrong["bytes_prefetch_wasted"] > 0
    assert wrong["bytes_total"] > none["bytes_total"]
    assert wrong["mean_tpot_ms"] > none["mean_tpot_ms"]


def test_no_run_beats_its_bound(simulate):
    """TPOT is at least the bound for every system that ships."""
    for system in ("mixtral-offloading", "on-demand", "moe-infinity-oss"):
        row = result_of(simulate(*TIGHT, "--system", system, "--json", "-"))
        assert row["mean_tpot_ms"] >= row["bound_tpot_ms"]
        assert row["over_bound"] >= 1


def test_csv_rows_are_appended_under_one_header(simulate, tmp_path: Path):
    """Two runs give a header and two rows, each the JSON's fields."""
    target = tmp_path / "results.csv"
    simulate(*TIGHT, "--csv", target, "--quiet")
    row = result_of(simulate("--slots", "50%", "--csv", target, "--json", "-"))
    with target.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [r["slots"] for r in rows] == ["96", "192"]
    assert rows[1]["run_id"] == row["run_id"]
    assert list(rows[0]) == list(FIELDS)


def test_a_foreign_csv_is_left_alone(simulate, tmp_path: Path):
    """A CSV with another header is refused in one line and not touched."""
    target = tmp_path / "mine.csv"
    target.write_text("a,b\n1,2\n")
    outcome = simulate(*TIGHT, "--csv", target, "--quiet")
    assert outcome.code == 1
    assert outcome.err.count("\n") == 1
    assert "mine.csv: line 1" in outcome.err
    assert target.read_text() == "a,b\n1,2\n"


def test_the_timeline_opens_as_chrome_json(simulate, tmp_path: Path):
    """The timeline is gzipped Chrome JSON whose events cover host, GPU and link."""
    target = tmp_path / "t.json.gz"
    assert simulate(*TIGHT, "--timeline", target, "--quiet").code == 0
    document = json.loads(gzip.decompress(target.read_bytes()))
    names = {e["args"]["name"] for e in document["traceEvents"] if e["name"] == "thread_name"}
    assert {"host thread", "GPU compute"} <= names


def test_the_plot_is_a_picture(simulate, tmp_path: Path):
    """A PNG is written; the dark one differs."""
    light, dark = tmp_path / "light.png", tmp_path / "dark.png"
    simulate(*TIGHT, "--plot", light, "--quiet")
    simulate(*TIGHT, "--plot", dark, "--dark", "--quiet")
    assert light.read_bytes()[:4] == b"\x89PNG"
    assert light.read_bytes() != dark.read_bytes()


def test_what_a_trace_cannot_give_is_null(cli, shared_data: Path):
    """TPOT of a trace of prompts and TTFT of a trace of decode steps are null, with the reason."""
    prompts = cli(
        *("simulate", shared_data / "traces" / "deepseek-v2-lite-esft", "--hardware", "h100-sxm"),
        *("--requests", 2, "--slots", "50%", "--json", "-"),
    )
    row = result_of(prompts)
    assert row["mean_tpot_ms"] is None
    assert row["bound_tpot_ms"] is None
    assert row["decode_hit_rate"] is None
    assert row["mean_ttft_ms"] > 0
    assert "no TPOT" in row["notes"]
    decode = cli(
        *("simulate", shared_data / "traces" / "gpt-oss-20b", "--hardware", "h100-sxm"),
        *("--requests", 1, "--slots", "25%", "--json", "-"),
    )
    row = result_of(decode)
    assert row["mean_ttft_ms"] is None
    assert row["mean_tpot_ms"] > 0
    assert "no TTFT" in row["notes"]


def test_memory_is_given_in_three_ways(simulate):
    """The same room as slots, as an expert budget and as a share gives the same run."""
    rows = [
        result_of(simulate(*memory, "--json", "-"))
        for memory in (("--slots", "25%"), ("--slots", "96"))
    ]
    assert rows[0]["run_id"] == rows[1]["run_id"]
    budget = result_of(
        simulate("--expert-budget", f"{rows[0]['expert_budget_bytes']}B", "--json", "-")
    )
    assert budget["run_id"] == rows[0]["run_id"]
    everything = result_of(simulate("--vram", "12GiB", "--json", "-"))
    assert everything["peak_vram_bytes"] <= 12 << 30
    assert everything["expert_budget_bytes"] == everything["peak_vram_bytes"] - sum(
        everything[f"vram_{name}_bytes"] for name in ("dense", "kv", "workspace")
    )


def test_the_initial_placement_is_counted_and_not_timed(cli, sample: Path):
    """A static cache places its experts before time zero: bytes_initial, no copies of them."""
    outcome = cli(
        *("simulate", sample, "--hardware", "rtx4090", "--cost-of", "mixtral-8x7b"),
        *("--format", "int4", "--slots", "25%", "--cache", "static", "--profile-trace", sample),
        *("--requests", 2, "--json", "-"),
    )
    row = result_of(outcome)
    assert row["bytes_initial"] > 0
    assert row["bytes_initial"] + row["staging_bytes"] <= row["expert_budget_bytes"]
    assert row["bytes_total"] == row["bytes_demand"]


def test_a_policy_of_ones_own_runs_from_a_file(simulate, tmp_path: Path):
    """``--policy-module file.py:Class:option=value`` replaces the policy of its axis."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from moesim.simulator.policies.base import CachePolicy\n\n\n"
        "class Youngest(CachePolicy):\n"
        '    """Evict the expert admitted last."""\n\n'
        "    def __init__(self, run, *, depth: int = 1):\n"
        "        super().__init__(run)\n"
        "        self.depth, self.order = depth, []\n\n"
        "    def on_admit(self, expert, view):\n"
        "        self.order.append(expert)\n\n"
        "    def on_evict(self, expert, view):\n"
        "        self.order.remove(expert)\n\n"
        "    def choose_victim(self, evictable, view):\n"
        "        return [e for e in self.order if e in evictable][-self.depth :][0]\n"
    )
    row = result_of(simulate(*TIGHT, "--policy-module", f"{mine}:Youngest:depth=1", "--json", "-"))
    assert row["cache"].endswith("Youngest:depth=1")
    assert row["hit_rate"] != result_of(simulate(*TIGHT, "--json", "-"))["hit_rate"]
