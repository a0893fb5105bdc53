"""What a validation leaves behind: what was predicted, what was measured, by whom.

What follows from the figures (errors, spread, verdict) is there for readers, and is derived again,
never believed, when a file is read. The files are those of ``evidence_files.py``.
"""

import hashlib
import json
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

SCHEMA: Literal[1] = 1


class Strict(BaseModel):
    """Base of all that evidence holds: frozen, no unknown key, no infinite number.

    ``LATER`` names what evidence of earlier versions does not have: where it is None it is not
    written, so that files, hashes and names of cells stay as they were.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    LATER: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = write(self)
        for name in self.LATER:
            if tree.get(name) is None:
                tree.pop(name, None)
        return tree


class Cell(Strict):
    """One claim: machine profile x model x trace x system x budget, and how it is executed.

    Attributes:
        profile_hash: Of the machine's and the runtime's figures.
        fit_traces: Hashes of the traces that figures were fitted on.
        trace_hash: Of exactly the requests that are served.
        budget: As the user gave it.
        routing: Whether routes are forced from the trace or the model's own on the trace's tokens.
        warm_tokens: Decode tokens that are executed and not counted, before ``tokens`` that are.
        held_out: Whether nothing of it was fitted.
        ask_ns: How long what its policies ask for takes; None where they ask for nothing.
        arrivals: Who comes when, drawn by ``seed``; None where nobody arrives by himself.
    """

    LATER = frozenset({"ask_ns", "arrivals", "seed"})

    backend: str
    hardware: str
    runtime: str
    profile_hash: str
    fit_traces: tuple[str, ...]
    model: str
    trace: str
    trace_hash: str
    system: str
    cache: str
    prefetch: str
    schedule: str
    timing_free: bool
    budget: str
    expert_budget_bytes: int = Field(gt=0)
    routing: Literal["forced", "own"]
    warm_tokens: int = Field(ge=0)
    tokens: int = Field(ge=1)
    repeats: int = Field(ge=1)
    held_out: bool
    moesim: str
    ask_ns: dict[str, int] | None = None
    arrivals: str | None = None
    seed: int | None = None

    @property
    def id(self) -> str:
        """Hash of everything that determines the cell."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def group(self) -> tuple[str, ...]:
        """What two cells share that differ in the system alone: they are ranked and interleaved."""
        common = (self.hardware, self.runtime, self.model, self.trace_hash, self.budget)
        return (*common, self.batching, f"{self.arrivals} {self.seed}" if self.arrivals else "")

    @property
    def where(self) -> str:
        """Budget, and how the cell is served: all but model and system."""
        _, _, how = self.trace.partition(", ")
        _, _, change = self.hardware.partition(" with ")
        return ", ".join(text for text in (self.budget, how, change) if text)

    @property
    def batching(self) -> str:
        """The guard that ``--max-batch`` put around the schedule; empty without one."""
        guard, slash, _ = self.schedule.partition("/")
        return guard if slash and guard.startswith("fcfs:") else ""


class Times(Strict):
    """Latencies in ms."""

    mean_tpot: float = Field(gt=0)
    p50_tpot: float = Field(gt=0)
    p99_tpot: float = Field(gt=0)
    mean_ttft: float | None = None


class Busy(Strict):
    """Where a run's time went, in ns.

    Attributes:
        served: From the first arrival to the last token.
        link: Copies.
        experts: Runs of experts while no copy ran.
        contention: How much of that was because of copies.
    """

    served: int
    link: int
    experts: int
    contention: int


class Guests(Strict):
    """What requests that arrived went through, in their order; times in ms.

    Attributes:
        ttft_ms: From a request's arrival to its first token; ``e2e_ms`` to its last.
        queue_ms: From its arrival to its first step.
        tpot_ms: Mean time of its tokens after the first.
        mean_batch: Requests in a step, over all steps.
        most_waiting: The most that waited at a time.
    """

    ttft_ms: tuple[float, ...]
    e2e_ms: tuple[float, ...]
    queue_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    mean_batch: float
    most_waiting: int


class Outcome(Strict):
    """What one run, replayed or executed, came to.

    Attributes:
        gaps_ms: Between the counted tokens, in order.
        counts: Hits, late hits, partial hits, misses and bytes, by their name in a result row.
        stall_ms: Mean stall of each MoE layer in decode; see ``stalls.py``.
        decisions_ms: What deciding took the host, over the whole run.
        guests: What requests went through, where they arrived by themselves.
    """

    LATER = frozenset({"stall_ms", "decisions_ms", "guests"})

    times: Times
    gaps_ms: tuple[float, ...]
    counts: dict[str, int]
    busy: Busy
    stall_ms: tuple[float, ...] | None = None
    decisions_ms: float | None = None
    guests: Guests | None = None


class Job(Strict):
    """One job of one token's timeline."""

    track: str
    name: str
    begin_ns: int
    end_ns: int


class Prediction(Strict):
    """What was written down before anything was executed."""

    schema_version: Literal[1] = SCHEMA
    cell: Cell
    outcome: Outcome
    evidence: str
    band: float
    decisions: int
    decisions_hash: str
    timeline: tuple[Job, ...]


class Difference(Strict):
    """The first decision that an execution took otherwise; None on a side that decided nothing."""

    step: int
    layer: int
    predicted: str | None
    executed: str | None


class Decisions(Strict):
    """How many layer events were decided otherwise than predicted.

    Attributes:
        exact: Whether commands were compared whole, numbers and places included (timing-free
            systems), or by what is copied and run, and where.
    """

    exact: bool
    events: int
    differing: int
    first: Difference | None


class Execution(Strict):
    """One execution that counts; earlier attempts were discarded because an anchor moved.

    Attributes:
        floor_ms: What its tokens had to take on average; see ``physical.py``.
    """

    outcome: Outcome
    decisions: Decisions
    attempts: int = Field(ge=1)
    anchors_before_ns: dict[str, int]
    anchors_after_ns: dict[str, int]
    floor_ms: float | None = None


class Replaced(Strict):
    """An execution in a burst of long copies, or its repetition if that was worse; ``bursts.py``.

    Attributes:
        number: Of the one that counts instead, from 0.
    """

    number: int = Field(ge=0)
    execution: Execution


class Provenance(Strict):
    """Where, when and by what: names of parts and versions, never of a host or a folder.

    Attributes:
        resident_ms: A token's time there with every expert in VRAM; None where they do not fit.
        resident_predicted_ms: What the figures of the cells say of it.
    """

    LATER = frozenset({"resident_predicted_ms"})

    machine: dict[str, str]
    versions: dict[str, str]
    commit: str
    command: str
    anchors_ns: dict[str, int]
    predicted_at: str
    began_at: str
    ended_at: str
    resident_ms: float | None = None
    resident_predicted_ms: float | None = None


class Judgement(Strict):
    """What follows from a cell's figures; see ``judge``.

    Attributes:
        error: Relative, by figure.
        error_ms: The same in ms.
        tolerance: By figure; what has none is reported and not judged.
        gap_ms: Measured minus predicted time of the whole run, by cause; they add up to it.
        drift: The furthest that an anchor lay from its value at calibration.
    """

    measured: Times
    spread: float
    ttft_spread: float | None
    repeatable: bool
    error: dict[str, float]
    error_ms: dict[str, float]
    tolerance: dict[str, float]
    gap_ms: dict[str, float]
    drift: float
    decisions_right: bool
    within: bool


class Evidence(Strict):
    """All that is known of one cell; the timeline is of its fastest execution.

    Attributes:
        executions: Those that count.
        replaced: Those that do not, by the rule of ``bursts.py``; None where there are none.
    """

    LATER = frozenset({"replaced"})

    schema_version: Literal[1] = SCHEMA
    prediction_hash: str
    prediction: Prediction
    executions: tuple[Execution, ...] = Field(min_length=1)
    timeline: tuple[Job, ...]
    provenance: Provenance
    judged: Judgement
    replaced: tuple[Replaced, ...] | None = None
