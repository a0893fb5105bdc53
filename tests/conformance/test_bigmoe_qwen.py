"""BigMoeOnEdge's Qwen3-30B-A3B on a phone: its published curves and its own device log.

Conventions of upstream's route-replay.py, all of which are rules of our controller: capacity is in
bytes and experts of some layers are larger; the prompt is one event for each layer; touches go by
(token, rank) and a repeat makes its expert young again; nothing of an event is evicted before the
event ends. Its LFU counts over the lifetime, once for each event. Its Belady looks ahead by event
and keeps every expert that it copies.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moesim.simulator.errors import BudgetError
from moesim.simulator.ledger import Counts
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, load

Replay = Callable[..., Counts]
Curve = dict[tuple[str, int], tuple[str, str, str]]

MIB = 1 << 20
POLICIES = {"lru": "lru", "lfu": "lfu:count=lifetime", "belady": "belady:admit=forced"}


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    """Return where the trace and the device's logs are."""
    return shared_data / "traces" / "bigmoe-qwen"


@pytest.fixture(scope="module")
def qwen(folder: Path) -> RoutingTrace:
    """Return the trace: one prompt of 28 tokens and 128 decode steps, 48 x 128, top-6."""
    return load(folder)


@pytest.fixture(scope="module")
def curve(folder: Path) -> Curve:
    """Return (hit % over all, hit % in decode, MiB read), as printed, by policy and MiB."""
    with (folder / "device" / "qwen-curve.csv").open() as file:
        return {
            (row["policy"], int(row["budget_mib"])): (
                row["hit_pct_cum"],
                row["hit_pct_decode"],
                row["read_mib"],
            )
            for row in csv.DictReader(file)
        }


@pytest.mark.parametrize(
    ("budget_mib", "overall", "decode"),
    [
        (750, 0.0, 0.0),
        (1000, 35.1, 37.7),
        (2000, 52.7, 56.5),
        (3000, 65.9, 70.6),
        (4000, 74.9, 80.3),
    ],
)
def test_global_lru_hits_as_often_as_published(
    qwen: RoutingTrace, replay: Replay, budget_mib: int, overall: float, decode: float
) -> None:
    """A global LRU in bytes gives the published rates, none at all below one token's footprint."""
    counts = replay(qwen, "lru", budget_bytes=budget_mib * MIB, expert_bytes_L=_sizes(qwen))
    actual = (round(_hit_pct(counts), 1), round(_decode_hit_pct(counts), 1))
    assert (overall, decode) == actual


@pytest.mark.parametrize("policy", POLICIES)
def test_every_row_of_the_published_curve_is_exact(
    qwen: RoutingTrace, curve: Curve, replay: Replay, policy: str
) -> None:
    """Both hit rates to three decimals and the bytes read agree at all eleven budgets."""
    expected = {budget_mib: row for (name, budget_mib), row in curve.items() if name == policy}
    assert len(expected) == 11
    actual = {}
    for budget_mib in expected:
        counts = replay(
            qwen, POLICIES[policy], budget_bytes=budget_mib * MIB, expert_bytes_L=_sizes(qwen)
        )
        actual[budget_mib] = (
            f"{_hit_pct(counts):.3f}",
            f"{_decode_hit_pct(counts):.3f}",
            f"{counts.bytes_demand / MIB:.1f}",
        )
    assert expected == actual


def test_the_device_counted_the_same_hits_after_every_token(
    qwen: RoutingTrace, folder: Path, replay: Replay
) -> None:
    """The phone's running hit rate at 4000 MiB agrees to its two decimals at all 128 tokens."""
    with (folder / "device" / "qwen.metrics").open() as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        expected = [float(row["cache_hit_pct"]) for row in rows]
    actual: list[float] = []

    def watch(counts: Counts) -> Callable[[int], None]:
        return lambda _tokens: actual.append(_hit_pct(counts))

    replay(qwen, "lru", budget_bytes=4000 * MIB, expert_bytes_L=_sizes(qwen), on_step=watch)
    _prompt, *decode = actual
    assert len(decode) == 128
    assert expected == pytest.approx(decode, abs=0.005)


HARD_QUOTA = {
    1000: ("38.873", "41.680"),
    1500: ("46.478", "49.835"),
    2000: ("54.774", "58.729"),
    2500: ("60.444", "64.808"),
    3000: ("65.833", "70.586"),
    4000: ("74.070", "79.419"),
    6000: ("84.248", "90.332"),
    8000: ("88.643", "95.044"),
}
"""What a share of the budget for each layer gives when it is never exceeded."""


@pytest.mark.parametrize("budget_mib", HARD_QUOTA)
def test_hard_layer_quotas_give_less_than_the_published_layer_rows(
    qwen: RoutingTrace, curve: Curve, replay: Replay, budget_mib: int
) -> None:
    """Per-layer LRU within its quota stays within 0.7 points of rows that exceed theirs."""
    counts = replay(
        qwen, "lru:scope=per_layer", budget_bytes=budget_mib * MIB, expert_bytes_L=_sizes(qwen)
    )
    actual = (f"{_hit_pct(counts):.3f}", f"{_decode_hit_pct(counts):.3f}")
    assert HARD_QUOTA[budget_mib] == actual
    assert counts.peak_expert_bytes <= budget_mib * MIB
    published = float(curve["layer", budget_mib][1])
    assert -0.05 < published - _decode_hit_pct(counts) < 0.7


@pytest.mark.parametrize("budget_mib", [250, 500, 750])
def test_a_quota_below_one_tokens_experts_is_refused(
    qwen: RoutingTrace, replay: Replay, budget_mib: int
) -> None:
    """Where a layer's share cannot hold six experts there is no run, whatever is published."""
    with pytest.raises(BudgetError, match="6 experts of one token"):
        replay(
            qwen, "lru:scope=per_layer", budget_bytes=budget_mib * MIB, expert_bytes_L=_sizes(qwen)
        )


def test_the_published_layer_rows_come_from_quotas_that_are_exceeded(
    qwen: RoutingTrace, curve: Curve
) -> None:
    """A layer that may exceed its share by all that its event needs gives the published rows.

    After the prompt the layers then hold 7,275 MiB, whatever the budget; each shrinks only when its
    first decode step has come, for which the prompt's whole union was there.
    """
    published = {budget: row for (name, budget), row in curve.items() if name == "layer"}
    assert len(published) == 11
    for budget_mib, (overall, decode, _) in published.items():
        hits, demands, peak_bytes = _lenient_layers(qwen, budget_mib * MIB)
        decode_pct = 100 * sum(hits[1:]) / sum(demands[1:])
        actual = (f"{100 * sum(hits) / sum(demands):.3f}", f"{decode_pct:.3f}")
        assert (overall, decode) == actual
        assert round(peak_bytes / MIB) == (7275 if budget_mib < 8000 else 7892)


def _lenient_layers(trace: RoutingTrace, budget_bytes: int) -> tuple[list[int], list[int], int]:
    """Return hits and demands of each step and the most bytes held, with shares that give way."""
    sizes_L = _sizes(trace)
    share_bytes = budget_bytes // trace.layers
    steps = 1 + int((~trace.is_prefill_T).sum())
    ages: list[dict[int, None]] = [{} for _ in sizes_L]
    hits, demands = [0] * steps, [0] * steps
    peak_bytes = 0
    for step, layer, choices in _events(trace):
        cached = ages[layer]
        needed = dict.fromkeys(choices)
        demands[step] += len(needed)
        hits[step] += len(cached.keys() & needed.keys())
        for expert in choices:
            cached.pop(expert, None)
            cached[expert] = None
        for expert in list(cached):
            if len(cached) * sizes_L[layer] <= share_bytes:
                break
            if expert not in needed:
                del cached[expert]
        held = [len(some) * size for some, size in zip(ages, sizes_L, strict=True)]
        peak_bytes = max(peak_bytes, sum(held))
    return hits, demands, peak_bytes


def _events(trace: RoutingTrace) -> Iterator[tuple[int, int, list[int]]]:
    for number, choices in enumerate(Workload(trace).events()):
        yield (*divmod(number, trace.layers), choices)


def _sizes(trace: RoutingTrace) -> tuple[int, ...]:
    sizes_L = trace.header.expert_bytes
    assert sizes_L is not None
    return sizes_L


def _hit_pct(counts: Counts) -> float:
    return 100 * counts.hits / counts.demands


def _decode_hit_pct(counts: Counts) -> float:
    return 100 * counts.decode_hits / counts.decode_demands
