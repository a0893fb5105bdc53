"""The CPU as a machine: equal decisions and logits on a real model, figures that predict."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch", reason="it runs a real model")

import numpy as np
import torch

from moesim.backends.budget import kv_bytes_per_token
from moesim.backends.controllers import Deciding
from moesim.backends.drivers.threads import ThreadsDriver
from moesim.backends.execution import execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.loading import Checkpoint
from moesim.backends.opening import Opened
from moesim.backends.served import parameter_bytes
from moesim.backends.store import ExpertStore
from moesim.backends.testing import resident_logits, tiny_model
from moesim.simulator.costs import CostModel
from moesim.simulator.errors import CapabilityError
from moesim.traces import RoutingTrace, SignalSpec, load, samples
from moesim.validation import own_routes, quick_files, quick_profile
from moesim.validation.beside import Check
from moesim.validation.cells import choose_system
from moesim.validation.commands import validate
from moesim.validation.subject import Subject

PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10))
app = typer.Typer()
app.command()(validate)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Let each stream compute on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Return a tiny random Mixtral whose experts were taken."""
    model = tiny_model()
    checkpoint = Checkpoint(
        model=model,
        tokenizer=None,
        name="tiny",
        revision=None,
        bytes_per_parameter=4,
        tokenizer_hash=None,
    )
    resident = resident_logits(model, PROMPTS, 6)
    store = ExpertStore.take_from(model)
    opened = Opened(
        checkpoint=checkpoint,
        store=store,
        dense_bytes=parameter_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model),
    )
    return Subject(
        opened=opened,
        make_driver=ThreadsDriver,
        prompts=PROMPTS,
        new_tokens=6,
        resident=resident,
    )


def deciding(subject: Subject, system: str) -> Deciding:
    """Return a system with room for half of the experts."""
    choice = choose_system(system)
    budget = subject.opened.store.total_bytes // 2
    return Deciding(policies=choice.policies, budget_bytes=budget, system=choice.system)


@pytest.mark.parametrize("system", ["on-demand", "lru", "lru+next_gate:horizon=1"])
def test_own_routes_pass(subject: Subject, system: str) -> None:
    """Decisions equal a replay's, and every logit the resident model's, bit by bit."""
    assert subject.resident is not None
    check, decided = own_routes.check_system(subject, subject.resident, deciding(subject, system))
    assert sum(decided.row_ns) > 0
    assert decided.cold_ns >= 0
    assert check.passed
    assert check.first is None
    assert check.largest_logit_difference == 0
    assert check.decisions > 100


def with_signals(trace: RoutingTrace, **signals: Any) -> RoutingTrace:
    """Return a trace that kept these signals, known once a layer was routed or a step began."""
    specs = {
        name: SignalSpec(
            tap="router",
            known_at="layer_routed" if "L" in name else "step_begin",
            producer="made up",
        )
        for name in signals
    }
    header = trace.header.model_copy(update={"signals": specs})
    return replace(trace, header=header, signals=signals, known=None)


def test_what_an_execution_cannot_tell_a_trace_tells(subject: Subject) -> None:
    """A system that reads embeddings and whole distributions is tried where a trace kept both."""
    trace = served_alone(subject)
    shape = trace.expert_TLK.shape[:2]
    probs_TLE = np.full((*shape, trace.experts), 1 / trace.experts, np.float16)
    embedding_TD = np.ones((len(probs_TLE), 4), np.float32)
    both = with_signals(trace, router_probs_TLE=probs_TLE, embedding_TD=embedding_TD)
    probs = with_signals(trace, router_probs_TLE=probs_TLE)
    system = deciding(subject, "lru+expert_map:distance=1")
    costs = CostModel.for_tests(layers=shape[1], experts=trace.experts, top_k=trace.top_k)

    decided = own_routes.Trying(subject, costs, trace, both).on_routes_of_a_trace(system)
    assert decided is not None
    assert sum(decided.row_ns) > 0
    assert own_routes.Trying(subject, costs, trace, probs).on_routes_of_a_trace(system) is None


def test_calls_are_sized_by_the_model_that_runs(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What calibrations look at may be of another topology; own routes have the model's top-k."""
    monkeypatch.setattr(own_routes.Decided, "of", lambda _done, _fresh, top_k: top_k)
    fitted = load(Path(samples.__path__[0]) / "twin-olmoe-16x64.npz").select_requests([0])
    top_k = subject.opened.store.parts.top_k
    assert fitted.top_k != top_k
    costs: Any = None
    alone = replace(subject, resident=None)
    trying = own_routes.Trying(alone, costs, fitted, fitted)
    assert trying.on_own_routes(deciding(subject, "lru")) == (None, top_k)


def test_another_resident_model_is_noticed(subject: Subject) -> None:
    """The comparison can fail: one logit of the reference that is otherwise fails the check."""
    assert subject.resident is not None
    resident = [[logits.clone() for logits in request] for request in subject.resident]
    resident[1][3][0] += 1.0
    check, _ = own_routes.check_system(subject, resident, deciding(subject, "lru"))
    assert not check.passed


@pytest.mark.parametrize(
    "change",
    [{"first": "command 3"}, {"same_text": False}, {"largest_logit_difference": 1e-9}],
)
def test_each_difference_alone_fails(change: dict[str, Any]) -> None:
    """A decision, the text or a logit that differs is enough."""
    right = Check(
        system="lru",
        timing_free=True,
        decisions=1,
        first=None,
        largest_logit_difference=0.0,
        lossless_on_gpu=True,
        same_text=True,
    )
    assert right.passed
    assert not right.model_copy(update=change).passed


def served_alone(subject: Subject) -> RoutingTrace:
    """Return the routes of one prompt and some tokens after it."""
    return execute(
        subject.opened.checkpoint.model,
        subject.opened.store,
        [Request(prompt=PROMPTS[0])],
        deciding(subject, "lru"),
        Sampling(new_tokens=6, ignore_eos=True),
    ).trace


def test_quick_figures_predict_what_they_were_fitted_on(subject: Subject) -> None:
    """The profile is valid, and its files hold it."""
    trace = execute(
        subject.opened.checkpoint.model,
        subject.opened.store,
        [Request(prompt=PROMPTS[0])],
        deciding(subject, "lru"),
        Sampling(new_tokens=30, ignore_eos=True),
    ).trace
    machine, runtime, trees = quick_profile.measure(
        subject.serve, subject.opened.costs_of, trace, 2
    )
    costs = CostModel(machine, runtime, subject.opened.costs_of)
    assert costs.evidence == "estimated"
    assert costs.copy_ns(subject.opened.store.sizes_L[0]) > 0
    assert costs.experts_gpu_ns(0, [1, 1]) > costs.experts_gpu_ns(0, [1]) > 0
    assert quick_files.profiles(trees) == (machine, runtime)


def test_own_routing_needs_tokens(subject: Subject) -> None:
    """The model's own routes need the trace's tokens, and a trace without them is refused."""
    trace = execute(
        subject.opened.checkpoint.model,
        subject.opened.store,
        [Request(prompt=PROMPTS[0])],
        deciding(subject, "lru"),
        Sampling(new_tokens=3, ignore_eos=True),
    ).trace
    with pytest.raises(CapabilityError, match="--routing own feeds the trace's tokens"):
        subject.serve(deciding(subject, "lru"), replace(trace, signals={}), "own")


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["forced", "own"])
def test_the_reference_model_end_to_end(tmp_path: Path, routing: str) -> None:
    """One short cell of the shipped model is predicted, executed, decided alike, and resumed."""
    options = ["--warm", "1", "--tokens", "6", "--repeats", "2", "--slots", "50%"]
    options += ["--system", "on-demand", "--routing", routing, "-o", str(tmp_path / "evidence")]
    first = CliRunner().invoke(app, options, catch_exceptions=False)
    again = CliRunner().invoke(app, options, catch_exceptions=False)
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "going on with the figures of the folder" in again.stderr
    assert "done before" in again.stderr
    assert first.stdout == again.stdout
