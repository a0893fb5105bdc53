"""What lies beside evidence of cells: executions so far, checks, what figures were made from."""

from typing import Literal

from moesim.validation.evidence import SCHEMA, Execution, Job, Strict


class Partial(Strict):
    """The executions of a cell that is not finished; who goes on needs to do the others alone.

    Attributes:
        prediction_hash: Of the prediction that they were executed against.
        predicted_at: When that was written; ``began_at`` when the first of them began.
        timeline: Of the fastest, whose mean TPOT is ``fastest`` in ms.
    """

    schema_version: Literal[1] = SCHEMA
    prediction_hash: str
    predicted_at: str
    began_at: str
    executions: tuple[Execution, ...]
    timeline: tuple[Job, ...]
    fastest: float


class Check(Strict):
    """A system run on the model's own routes, against the resident model and against a replay.

    Attributes:
        largest_logit_difference: Relative to the largest logit, against every expert resident.
        same_text: Whether greedy decoding gives the resident model's tokens.
        commit: Of the code that was checked.
        first: The first decision in which a replay of the routes just served differs, where the
            system is timing-free; else the first that a fresh controller fed the facts differs in.
        fault: What went wrong where the check could not be carried through; the rest says nothing.
    """

    LATER = frozenset({"commit", "fault"})

    system: str
    timing_free: bool
    decisions: int
    first: str | None
    largest_logit_difference: float
    lossless_on_gpu: bool
    same_text: bool
    commit: str | None = None
    fault: str | None = None

    @classmethod
    def broken(cls, system: str, fault: str, *, timing_free: bool, commit: str) -> "Check":
        """Return the check of a system in which something went wrong."""
        return cls(
            system=system,
            timing_free=timing_free,
            decisions=0,
            first=None,
            largest_logit_difference=0.0,
            lossless_on_gpu=False,
            same_text=False,
            commit=commit,
            fault=fault,
        )

    @property
    def passed(self) -> bool:
        """Whether decisions, text and, where no expert ran on the CPU, every logit are equal."""
        if self.fault is not None:
            return False
        equal = self.largest_logit_difference == 0 or not self.lossless_on_gpu
        return self.first is None and self.same_text and equal


class Checks(Strict):
    """What a backend asserted before any cell was executed."""

    schema_version: Literal[1] = SCHEMA
    checks: tuple[Check, ...]


class Calibration(Strict):
    """What figures were made from: the machine, its anchors then, the traces fitted on by hash.

    Attributes:
        anchors_ns: None of them yet where the systems had not been checked.
        decisions_ns: Base, per expert and per command of systems without a row in the profile.
        asks_ns: How long what they ask for takes, by system.
    """

    LATER = frozenset({"decisions_ns", "asks_ns"})

    schema_version: Literal[1] = SCHEMA
    fingerprint: dict[str, str]
    anchors_ns: dict[str, int]
    fit_traces: tuple[str, ...]
    decisions_ns: dict[str, tuple[int, int, int]] | None = None
    asks_ns: dict[str, dict[str, int]] | None = None
