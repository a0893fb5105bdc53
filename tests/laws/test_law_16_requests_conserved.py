"""Law 16: every request that arrives is served once or refused; tokens in are tokens out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.simulator.errors import OutOfMemoryError
from moesim.simulator.ledger import Timings
from moesim.simulator.messages import Fact, LayerRouted, RequestArrived, RequestEnded, StepEnded
from moesim.simulator.runs import Prepared
from moesim.simulator.serving.spec import Serving
from moesim.simulator.testing import Witness, adversarial, engine, small_run, tiny_trace

KV_TOKEN_BYTES = 1_000
SCHEDULES = ["fcfs", "shortest_first", "slo_first", "task_aware"]


@st.composite
def servings(draw: st.DrawFn) -> Prepared:
    """Draw a server: arrivals in bursts or not, any batching and memory, one GPU or two."""
    lengths = f"prompt={draw(st.integers(1, 9))},output={draw(st.integers(1, 9))}"
    requests = draw(st.integers(1, 8))
    kinds = ["poisson:rate=300", "gamma:rate=900,cv=4", "users:users=3,think=0.001"]
    kind = draw(st.sampled_from(kinds))
    chunk = draw(st.sampled_from(["none", "1", "3"]))
    batching = f"{draw(st.sampled_from(SCHEDULES))}:max_batch={draw(st.integers(1, 4))}"
    return small_run(
        tiny_trace(layers=2),
        slots=draw(st.integers(4, 12)),
        schedule=f"{batching},chunk={chunk}/resident_first",
        serving=Serving(
            f"{kind},requests={requests},{lengths}",
            most_waiting=draw(st.sampled_from([None, 1, 2])),
        ),
        kv=f"{draw(st.integers(10, 60)) * KV_TOKEN_BYTES}B",
        kv_bytes_per_token=KV_TOKEN_BYTES // 2,
        seed=draw(st.integers(0, 99)),
        gpus=draw(st.sampled_from([1, 1, 2])),
    )


def served(run: Prepared, name: str = "clock") -> tuple[Timings, list[Fact]]:
    """Serve a run under the witness, and return what was measured and told."""
    controller = run.controller(keep_log=True)
    timings = engine(run, Witness(controller), name=name).run()
    controller.close()
    assert controller.log is not None
    return timings, [fact for facts, _, _ in controller.log for fact in facts]


@given(servings())
def test_every_request_ends_once_or_is_refused(run: Prepared) -> None:
    """Arrivals, ends and refusals add up, and every token of the served is processed and given."""
    timings, facts = served(run)
    assert run.served is not None
    drawing, requests = run.served.stream.drawing, run.served.stream.requests
    arrived = [fact.request for fact in facts if isinstance(fact, RequestArrived)]
    ended = [fact.request for fact in facts if isinstance(fact, RequestEnded)]
    assert sorted(arrived) == sorted(ended) == sorted(times.request for times in timings.requests)
    assert len(set(arrived)) == len(arrived)
    assert requests == len(arrived) + timings.server.refused
    outputs = sum(drawing.output_tokens_R[request] for request in arrived)
    prompts = sum(drawing.prompt_tokens_R[request] for request in arrived)
    assert outputs == sum(sum(fact.tokens) for fact in facts if isinstance(fact, StepEnded))
    assert prompts + outputs - len(arrived) == timings.server.tokens
    chosen = sum(len(fact.experts) for fact in facts if isinstance(fact, LayerRouted))
    assert chosen == timings.server.tokens * run.spec.trace.layers * run.spec.trace.top_k
    for times in timings.requests:
        assert drawing.output_tokens_R[times.request] == len(times.token_ends_ns)


@given(servings())
def test_the_kv_cache_never_outgrows_its_room(run: Prepared) -> None:
    """Whoever is let in finds its room; what can never fit is refused."""
    timings, _ = served(run)
    assert run.served is not None
    assert timings.server.most_kv_bytes <= run.served.kv.room_bytes
    drawing = run.served.stream.drawing
    lengths = zip(drawing.prompt_tokens_R, drawing.output_tokens_R, strict=True)
    too_long = sum(
        (prompt + output - 1) * KV_TOKEN_BYTES > run.served.kv.room_bytes
        for prompt, output in lengths
    )
    assert too_long == timings.server.refused_too_long


@given(servings(), st.data())
def test_in_whatever_order_work_ends(run: Prepared, data: st.DataObject) -> None:
    """Laws 1 to 6 hold for batches under a driver that ends work in any order."""
    adversarial(run, lambda n: data.draw(st.integers(0, n - 1))).run()


def test_reserving_prompts_alone_ends_out_of_memory_not_in_wrong_numbers() -> None:
    """Answers that outgrow the room end the run with one line; the same load reserved is served."""
    options = {
        "slots": 18,
        "schedule": "fcfs:max_batch=4/resident_first",
        "kv": "30000B",
        "kv_bytes_per_token": KV_TOKEN_BYTES // 3,
    }
    arrivals = "users:users=4,requests=4,prompt=4,output=9"
    careful = small_run(tiny_trace(), serving=Serving(arrivals), **options)
    assert len(served(careful)[0].requests) == 4
    hasty = small_run(tiny_trace(), serving=Serving(arrivals, reserve="prompt"), **options)
    with pytest.raises(OutOfMemoryError, match="the KV caches of 4 requests take"):
        served(hasty)
