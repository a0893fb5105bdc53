"""Cells of requests that run together: predicted and executed alike, counted in order of time."""

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="it runs a real model")

from moesim.backends.batches import workload_for  # noqa: E402 - after the skip
from moesim.backends.budget import kv_bytes_per_token  # noqa: E402
from moesim.backends.controllers import Deciding  # noqa: E402
from moesim.backends.drivers.threads import ThreadsDriver  # noqa: E402
from moesim.backends.execution import execute  # noqa: E402
from moesim.backends.generation import Request, Sampling  # noqa: E402
from moesim.backends.loading import Checkpoint  # noqa: E402
from moesim.backends.opening import Opened  # noqa: E402
from moesim.backends.served import parameter_bytes  # noqa: E402
from moesim.backends.store import ExpertStore  # noqa: E402
from moesim.backends.testing import tiny_model  # noqa: E402
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime  # noqa: E402
from moesim.simulator.costs import CostModel  # noqa: E402
from moesim.simulator.errors import CapabilityError, InputError  # noqa: E402
from moesim.simulator.ledger import RequestTimes  # noqa: E402
from moesim.simulator.messages import FormStep  # noqa: E402
from moesim.validation.cells import choose_system, make_cell, policies_of  # noqa: E402
from moesim.validation.commands import validate  # noqa: E402
from moesim.validation.compare import compare_decisions, gaps_in_time  # noqa: E402
from moesim.validation.predict import predict  # noqa: E402
from moesim.validation.routes import held_out  # noqa: E402
from moesim.validation.subject import Subject  # noqa: E402

PROMPTS = ((5, 9, 200, 17, 33, 4), (7, 8, 9, 10), (250, 3, 3, 3, 61), (11, 12))
NEW_TOKENS = 8
BATCHINGS = [(3, None), (4, 4), (None, 2)]


@pytest.fixture(scope="module")
def machine() -> Any:
    """Return a machine of threads with a tiny Mixtral and the routes that it served."""
    torch.set_num_threads(1)
    model = tiny_model()
    checkpoint = Checkpoint(
        model=model,
        tokenizer=None,
        name="tiny",
        revision=None,
        bytes_per_parameter=4,
        tokenizer_hash=None,
    )
    store = ExpertStore.take_from(model)
    opened = Opened(
        checkpoint=checkpoint,
        store=store,
        dense_bytes=parameter_bytes(model),
        kv_bytes_per_token=kv_bytes_per_token(model),
    )
    subject = Subject(opened=opened, make_driver=ThreadsDriver)
    trace = execute(
        model,
        store,
        [Request(prompt=prompt) for prompt in PROMPTS],
        Deciding(policies=choose_system("lru").policies, budget_bytes=store.total_bytes),
        Sampling(new_tokens=NEW_TOKENS, ignore_eos=True),
    ).trace
    return _Machine(subject, trace)


class _Machine:
    """What ``predict`` needs of a machine."""

    def __init__(self, subject: Subject, trace: Any) -> None:
        self.subject, self.trace = subject, trace
        self.costs = CostModel(round_machine(), round_runtime(), subject.opened.costs_of)

    def deciding(self, cell: Any) -> Deciding:
        policies = {"cache": cell.cache, "prefetch": cell.prefetch, "schedule": cell.schedule}
        return Deciding(policies=policies, budget_bytes=cell.expert_budget_bytes, costs=self.costs)

    terms = None

    def workload(self, cell: Any, *, signals: Any, gates: bool) -> Any:
        return workload_for(policies_of(cell), self.trace, signals=signals, gates=gates)

    def cell(self, system: str, batching: Any) -> Any:
        return make_cell(
            choose_system(system),
            "50%",
            self.subject.budget_bytes("50%", self.trace, batching),
            backend="cpu",
            profiles=(round_machine(), round_runtime()),
            fit_traces=(),
            model="tiny",
            trace=self.trace,
            trace_name="tiny",
            routing="forced",
            lengths=(2, 20, 1),
            batching=batching,
        )


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
@pytest.mark.parametrize("system", ["lru", "on-demand", "mixtral-offloading"])
def test_a_batched_cell_is_decided_as_predicted(machine: Any, system: str, batching: Any) -> None:
    """The replay forms the steps of the execution; no decision of a timing-free system differs."""
    cell = machine.cell(system, batching)
    replayed = predict(machine, cell)

    done = machine.subject.serve(machine.deciding(cell), machine.trace)

    assert cell.timing_free
    decisions = compare_decisions(replayed.log, done.log, exact=True)
    assert (decisions.differing, decisions.first) == (0, None)
    assert decisions.events > 20
    formed = [c for _, _, answer in done.log for c in answer if isinstance(c, FormStep)]
    assert max(len(step.requests) for step in formed) == (batching[0] or 1)


def test_batched_cells_are_a_group_of_their_own(machine: Any) -> None:
    """Systems are ranked at one batch size, and a cell of another has another name."""
    alone, few, many = (machine.cell("lru", each) for each in ((None, None), (3, None), (4, 4)))
    assert len({alone.group, few.group, many.group}) == 3
    assert machine.cell("on-demand", (3, None)).group == few.group
    assert (alone.batching, few.batching) == ("", "fcfs:max_batch=3")


def test_the_future_is_that_of_single_requests(machine: Any) -> None:
    """A policy that sees the future is refused where other steps are formed."""
    with pytest.raises(CapabilityError, match="belady sees the future.*without --max-batch"):
        machine.cell("belady", (3, None))


def test_a_batch_needs_as_many_requests(machine: Any) -> None:
    """As many requests are taken as run together, and too few of them are refused."""
    trace = machine.trace
    fitted = trace.select_requests([3])
    assert held_out(trace, fitted, 3, requests=3) == [0, 1, 2]
    with pytest.raises(InputError, match="--max-batch 4: the trace has 3 requests"):
        held_out(trace, fitted, 3, requests=4)


def test_gaps_are_in_order_of_time() -> None:
    """Gaps of requests that run together take turns; those of one ending together, by request."""
    first = RequestTimes(0, 0, 0, 4, [10, 20, 40], has_first_token=True)
    second = RequestTimes(1, 0, 12, 4, [15, 20, 35], has_first_token=True)
    assert gaps_in_time([second, first]) == [10, 5, 15, 20]


@pytest.mark.slow
def test_batches_of_the_reference_model_end_to_end(tmp_path: Path) -> None:
    """The command predicts, executes and judges a batch; decisions are as predicted."""
    app = typer.Typer()
    app.command()(validate)
    options = [
        "--warm",
        "1",
        "--tokens",
        "6",
        "--repeats",
        "1",
        "--slots",
        "50%",
        "--max-batch",
        "2",
    ]
    options += ["--system", "on-demand", "--chunk", "64", "-o", str(tmp_path / "evidence")]
    done = CliRunner().invoke(app, options, catch_exceptions=False)
    assert done.exit_code == 0
    assert "batch 2" in next((tmp_path / "evidence").glob("*.prediction.json")).read_text()
