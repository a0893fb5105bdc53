"""Requests served together say what each says alone, and are decided on as in a replay."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="executions run a real model")
pytest.importorskip("transformers", reason="they are models of transformers")

from moesim.backends.controllers import LOOK_IN, Deciding  # noqa: E402 - after the skip
from moesim.backends.execution import Keep, execute  # noqa: E402
from moesim.backends.forcing import requests_of  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.packed import check_packable  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import first_difference, resident_logits, tiny_model  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.engines.counts import count  # noqa: E402
from moesim.simulator.engines.simpy import SimpyEngine  # noqa: E402
from moesim.simulator.errors import CapabilityError  # noqa: E402
from moesim.simulator.messages import FormStep, StepBegan  # noqa: E402
from moesim.simulator.serving.arrivals import OpenLoop, Users  # noqa: E402
from moesim.simulator.serving.recorded import RecordedRequests  # noqa: E402
from moesim.simulator.terms import Phase  # noqa: E402

FAMILIES = ("Mixtral", "Qwen3Moe", "Olmoe", "DeepseekV2", "Phimoe", "GptOss", "DeepseekV3")
REORDERING_NOISE = 2e-5
"""Of the largest logit, in float32: products of other sizes, added up in another order."""
PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10), tuple(range(40, 61)), (250, 3, 3), (11,))
LENGTHS = (6, 3, 5, 8, 2)
GUARDS = {"whole": "fcfs:max_batch=3", "chunked": "fcfs:max_batch=4,chunk=5"}
SLOTS = 9


def sampling(**options: Any) -> Sampling:
    """Return greedy sampling that never stops early."""
    return Sampling(new_tokens=9, ignore_eos=True, **options)


def alone(it: Any, number: int, how: Sampling | None = None) -> Any:
    """Return what one prompt gives when it is served by itself with every expert in place."""
    experts = it.store.parts.experts * len(it.store.sizes_L)
    return it.run(
        it.deciding("lru none resident_first", experts),
        requests=[Request(prompt=PROMPTS[number], forced=None)],
        sampling=how or Sampling(new_tokens=LENGTHS[number], ignore_eos=True),
    )


def forced_to(tokens: list[list[int]]) -> list[Request]:
    """Return requests of the lengths wanted: they generate these tokens whatever the logits say."""
    return [
        Request(prompt=prompt, forced=mine) for prompt, mine in zip(PROMPTS, tokens, strict=True)
    ]


def batched(it: Any, guard: str, inner: str, slots: int = SLOTS, **options: Any) -> Any:
    """Return policies around which a guard batches, and what came of executing all at once."""
    deciding = it.deciding(
        dict(zip(("cache", "prefetch", "schedule"), inner.split(), strict=True)), slots
    )
    policies = {**deciding.policies, "schedule": f"{guard}/{deciding.policies['schedule']}"}
    deciding = it.deciding(policies, slots)
    options.setdefault("arrivals", OpenLoop([0] * len(PROMPTS)))
    return deciding, it.run(deciding, **options)


def largest_difference(ours: Any, theirs: Any) -> float:
    """Return the largest difference of two logits over the largest logit of its step."""
    assert [len(each) for each in ours] == [len(each) for each in theirs]
    return max(
        float((a - b).abs().max() / b.abs().max())
        for mine, yours in zip(ours, theirs, strict=True)
        for a, b in zip(mine, yours, strict=True)
    )


@pytest.fixture(scope="module")
def single(offloaded: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that gives what each prompt says alone: tokens and logits; once each."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            done = [alone(offloaded(family), number) for number in range(len(PROMPTS))]
            made[family] = ([one.tokens[0] for one in done], [one.logits[0] for one in done])
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("guard", GUARDS)
def test_each_request_says_what_it_says_alone(
    offloaded: Callable[[str], Any], single: Callable[[str], Any], family: str, guard: str
) -> None:
    """Batches of prompts, pieces and tokens give each request's text, and logits within noise."""
    it, (tokens, logits) = offloaded(family), single(family)

    _, done = batched(it, GUARDS[guard], "lru none resident_first", requests=forced_to(tokens))

    assert done.counts.misses > 0
    assert largest_difference(done.logits, logits) <= REORDERING_NOISE
    text = [[int(each.argmax()) for each in one] for one in done.logits]
    assert text == tokens


def commands(log: Any) -> list[Any]:
    """Return every command in order."""
    return [command for _, _, answer in log for command in answer]


def fresh(it: Any, deciding: Any) -> Any:
    """Return another controller of the same kind."""
    parts = it.store.parts
    return deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=it.store.sizes_L, keep_log=True
    )


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize(
    "inner", ["lru none resident_first", "lfu none cpu_on_miss", "transient none on_demand"]
)
def test_a_replay_of_what_was_served_decides_alike(
    offloaded: Callable[[str], Any], single: Callable[[str], Any], guard: str, inner: str
) -> None:
    """Replays form the same steps of the same requests and command the same, waves included."""
    it, (tokens, _) = offloaded("Qwen3Moe"), single("Qwen3Moe")

    deciding, done = batched(it, GUARDS[guard], inner, 5, requests=forced_to(tokens))

    executed = commands(done.log)
    counted, timed = fresh(it, deciding), fresh(it, deciding)
    count(counted, RecordedRequests(done.trace), budget_bytes=deciding.budget_bytes)
    size, trace = it.store.sizes_L[0], done.trace
    SimpyEngine(
        timed,
        RecordedRequests(done.trace),
        CostModel.for_tests(
            layers=trace.layers, experts=trace.experts, top_k=trace.top_k, expert_bytes=size
        ),
        expert_bytes=lambda _expert, _part: size,
        budget_bytes=deciding.budget_bytes,
    ).run()
    assert commands(counted.log) == executed
    assert commands(timed.log) == executed
    assert max(len(c.requests) for c in executed if isinstance(c, FormStep)) > 2
    assert done.counts.waves > 0 or "cpu_on_miss" in inner


def test_a_wrong_route_changes_the_decisions(
    offloaded: Callable[[str], Any], single: Callable[[str], Any]
) -> None:
    """The comparison can fail: one other expert in the trace gives other commands."""
    it, (tokens, _) = offloaded("Mixtral"), single("Mixtral")
    deciding, done = batched(
        it, GUARDS["whole"], "lru none resident_first", requests=forced_to(tokens)
    )
    ids_K = done.trace.expert_TLK[-1, -1]
    ids_K[0] = next(e for e in range(done.trace.experts) if e not in set(ids_K.tolist()))

    counted = fresh(it, deciding)
    count(counted, RecordedRequests(done.trace), budget_bytes=deciding.budget_bytes)

    assert commands(counted.log) != commands(done.log)


def test_a_layer_of_a_step_is_one_demand(
    offloaded: Callable[[str], Any], single: Callable[[str], Any]
) -> None:
    """A prompt beside single tokens is one step with one choice of experts in each layer."""
    it, (tokens, _) = offloaded("Qwen3Moe"), single("Qwen3Moe")

    _, done = batched(it, GUARDS["whole"], "lru none resident_first", requests=forced_to(tokens))

    steps = [fact for facts, _, _ in done.log for fact in facts if isinstance(fact, StepBegan)]
    assert {frozenset(step.phases) for step in steps} >= {frozenset(Phase)}
    assert done.counts.steps == len(steps)
    served = sum(len(p) + n - 1 for p, n in zip(PROMPTS, LENGTHS, strict=True))
    assert done.trace.tokens == served
    assert done.counts.output_tokens == sum(LENGTHS)


@pytest.mark.parametrize(
    "inner",
    ["lru next_gate:horizon=2 resident_first", "lfu transition_table:fit=online cpu_on_miss"],
)
@pytest.mark.parametrize("guard", GUARDS)
def test_a_fresh_controller_answers_the_fact_log_alike(
    offloaded: Callable[[str], Any], single: Callable[[str], Any], guard: str, inner: str
) -> None:
    """Fed the facts of batched steps, with prefetches under way, it gives the same commands."""
    it, (tokens, _) = offloaded("Qwen3Moe"), single("Qwen3Moe")

    deciding, done = batched(it, GUARDS[guard], inner, 14, requests=forced_to(tokens))

    assert first_difference(done.log, fresh(it, deciding)) is None


def test_what_gates_foretold_is_each_requests_own(
    offloaded: Callable[[str], Any], single: Callable[[str], Any]
) -> None:
    """The trace of a batch has each request's routes and looks ahead as it has them alone."""
    it, (tokens, _) = offloaded("Qwen3Moe"), single("Qwen3Moe")
    inner = "lru next_gate:horizon=2 resident_first"

    _, together = batched(it, GUARDS["chunked"], inner, requests=forced_to(tokens))
    deciding = it.deciding(inner, SLOTS)
    one_by_one = it.run(deciding, requests=forced_to(tokens))

    assert (together.trace.expert_TLK == one_by_one.trace.expert_TLK).all()
    ours, theirs = (done.trace.signals[LOOK_IN] for done in (together, one_by_one))
    assert (ours == theirs).mean() > 0.999  # two nearly equal gates may change places


def test_forced_routes_are_served_in_batches(
    offloaded: Callable[[str], Any], single: Callable[[str], Any]
) -> None:
    """Routes of a trace replace the model's own, whoever is served together."""
    it, (tokens, _) = offloaded("Olmoe"), single("Olmoe")
    inner = "lru none resident_first"
    trace = it.run(it.deciding(inner, SLOTS), requests=forced_to(tokens)).trace

    _, done = batched(it, GUARDS["chunked"], inner, routes=trace, requests=requests_of(trace, 300))

    assert (done.trace.expert_TLK == trace.expert_TLK).all()
    steps = done.trace.step_T[: len(PROMPTS[0])].tolist()
    assert steps == [0] * 5 + [1]


def test_requests_draw_from_their_own_random_streams(offloaded: Callable[[str], Any]) -> None:
    """With a temperature, who is served together changes no request's text."""
    it = offloaded("Mixtral")
    how = sampling(temperature=0.8, seed=3)
    requests = [Request(prompt=prompt) for prompt in PROMPTS]

    _, together = batched(
        it, GUARDS["whole"], "lru none resident_first", requests=requests, sampling=how
    )
    one_by_one = it.run(
        it.deciding("lru none resident_first", SLOTS), requests=requests, sampling=how
    )

    assert together.tokens == one_by_one.tokens


@pytest.mark.parametrize(
    "arrivals",
    [lambda: Users(2, len(PROMPTS)), lambda: OpenLoop([0, 10**6, 2 * 10**6, 10**8, 4 * 10**8])],
    ids=["users", "times"],
)
def test_requests_may_arrive_while_others_run(
    offloaded: Callable[[str], Any], single: Callable[[str], Any], arrivals: Any
) -> None:
    """Whoever comes when, everybody is answered, not before he has come."""
    it, (tokens, logits) = offloaded("Mixtral"), single("Mixtral")

    deciding, done = batched(
        it,
        GUARDS["whole"],
        "lru none resident_first",
        requests=forced_to(tokens),
        arrivals=arrivals(),
    )

    assert largest_difference(done.logits, logits) <= REORDERING_NOISE
    assert first_difference(done.log, fresh(it, deciding)) is None
    for number, times in enumerate(done.timings.requests):
        assert times.request == number
        assert times.arrived_ns <= times.began_ns < times.token_ends_ns[0]
        assert len(times.token_ends_ns) == LENGTHS[number]


def test_positions_that_depend_on_others_are_refused(make_model: Callable[[str], Any]) -> None:
    """A family whose positions look at the longest request of a step is refused in one line."""
    model = make_model("Phimoe")
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": "longrope"}
    with pytest.raises(CapabilityError, match=r"longrope positions.*--max-batch 1"):
        check_packable(model)


def test_a_long_prompt_goes_through_in_pieces_and_waves() -> None:
    """A prompt of 2,048 tokens beside others, in pieces whose demand no cache holds, is exact."""
    model = tiny_model(context=4096)
    prompts = [[(7 * at + at * at) % 290 + 5 for at in range(2048)], [5, 6, 7], [9] * 40]
    alone = resident_logits(model, prompts, 4)
    store = ExpertStore.take_from(model)
    policies = {
        "cache": "lru",
        "prefetch": "none",
        "schedule": "fcfs:max_batch=3,chunk=256/on_demand",
    }

    done = execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in prompts],
        Deciding(policies=policies, budget_bytes=4 * store.sizes_L[0]),
        Sampling(new_tokens=4, ignore_eos=True),
        keep=Keep(logits=True),
        arrivals=OpenLoop([0, 0, 0]),
    )

    assert done.counts.waves >= 8
    assert largest_difference(done.logits, alone) <= REORDERING_NOISE
    assert done.tokens == [[int(each.argmax()) for each in one] for one in alone]
