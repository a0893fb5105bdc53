"""The search for the cheapest machine against trying everything."""

from pathlib import Path

import pytest

from moesim.simulator.errors import InputError, MoesimError
from moesim.simulator.planning import Candidate, in_order_of_cost, search
from moesim.simulator.runs import prepare
from moesim.simulator.sweeps.file import RunOptions
from moesim.traces import synthetic, write

MACHINES = ("rtx4060-laptop", "h100-sxm")


@pytest.fixture
def options(tmp_path: Path) -> RunOptions:
    """Return a small run of 16 experts at the cost of a big model."""
    trace = synthetic.sticky(
        seed=0, reuse=0.6, layers=4, experts=4, top_k=1,
        requests=1, prompt_tokens=2, decode_tokens=25,
    )  # fmt: skip
    write(trace, tmp_path / "t.npz")
    return RunOptions(
        trace=str(tmp_path / "t.npz"),
        hardware="rtx4090",
        cost_of="mixtral-8x7b",
        weights_format="int4",
    )


def tpot_ms(options: RunOptions, hardware: str, slots: int) -> float | None:
    """Return the mean TPOT of one run, or None where it cannot be."""
    run = options.model_copy(update={"hardware": hardware, "slots": str(slots)})
    try:
        return prepare(run.run_spec()).replay().row["mean_tpot_ms"]
    except MoesimError:
        return None


@pytest.mark.parametrize("cache", ["lru", "lru:scope=per_layer"])
def test_it_finds_what_trying_every_budget_finds(options: RunOptions, cache: str) -> None:
    """The first machine that will do, and its fewest slots, are those of all runs there are."""
    options = options.model_copy(update={"cache": cache})
    tried = {
        (hardware, slots): tpot
        for hardware in MACHINES
        for slots in range(1, 17)
        if (tpot := tpot_ms(options, hardware, slots)) is not None
    }
    limits = [*sorted(tried.values())[::9], 0.01]
    answers = set()
    for limit in limits:
        expected = next((run for run, tpot in tried.items() if tpot <= limit), None)
        candidates = [Candidate(hardware) for hardware in MACHINES]
        *no, last = search(options, candidates, {"mean_tpot_ms": limit})
        found = (last.candidate.hardware, last.slots) if last.slots is not None else None
        assert found == expected
        assert all(verdict.slots is None for verdict in no)
        assert all(verdict.runs <= 6 for verdict in (*no, last))
        answers.add(found)
    assert {hardware for hardware, _ in filter(None, answers)} == set(MACHINES)


def test_every_limit_is_met(options: RunOptions) -> None:
    """With two limits the row found keeps both, and a slot fewer breaks one."""
    loose = {"mean_tpot_ms": tpot_ms(options, "rtx4090", 6)}
    (first,) = search(options, [Candidate("rtx4090")], loose)
    assert first.row is not None
    all_slots = prepare(options.model_copy(update={"slots": "15"}).run_spec()).replay().row
    strict = {**loose, "p99_tpot_ms": all_slots["p99_tpot_ms"]}
    (second,) = search(options, [Candidate("rtx4090")], strict)
    assert second.slots >= first.slots
    assert all(second.row[name] <= limit for name, limit in strict.items())
    fewer = options.model_copy(update={"slots": str(second.slots - 1)})
    row = prepare(fewer.run_spec()).replay().row
    assert any(row[name] > limit for name, limit in strict.items())


def test_a_model_that_does_not_fit_says_so(options: RunOptions, tmp_path: Path) -> None:
    """A machine without room is no candidate; the reason is the memory's own."""
    trace = synthetic.sticky(
        seed=0, reuse=0.6, layers=32, experts=8, top_k=2,
        requests=1, prompt_tokens=0, decode_tokens=2,
    )  # fmt: skip
    write(trace, tmp_path / "large.npz")
    heavy = options.model_copy(
        update={
            "trace": str(tmp_path / "large.npz"),
            "weights_format": "bf16",
            "cost_of": "mixtral-8x22b",
        }
    )
    (verdict,) = search(heavy, [Candidate("a100-40gb")], {"mean_tpot_ms": 1e9})
    assert verdict.slots is None
    assert verdict.runs == 0
    assert verdict.reason.startswith("does not fit: ")


def test_what_is_too_slow_is_told_beside_the_bound(options: RunOptions) -> None:
    """Below the bound no policy helps, and the reason says that."""
    (verdict,) = search(options, [Candidate("rtx4090")], {"mean_tpot_ms": 0.01})
    assert verdict.runs == 1
    assert "over 0.01; no policy with the same means can meet it" in verdict.reason


def test_the_cheapest_is_tried_first() -> None:
    """Prices order the machines; without any the order given stands; some alone are refused."""
    one, two = Candidate("a", 2.0), Candidate("b", 1.0)
    assert in_order_of_cost([one, two]) == [two, one]
    assert in_order_of_cost([Candidate("a"), Candidate("b")]) == [Candidate("a"), Candidate("b")]
    with pytest.raises(InputError, match="--hardware b: others have a price"):
        in_order_of_cost([one, Candidate("b")])


def test_an_objective_is_needed(options: RunOptions) -> None:
    """Without a limit there is nothing to search for."""
    with pytest.raises(InputError, match="give one of --tpot, --p99-tpot and --ttft"):
        list(search(options, [Candidate("rtx4090")], {}))
