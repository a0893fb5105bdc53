"""How a run is served, as the user says it: who arrives, on which terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from moesim.simulator.errors import InputError
from moesim.simulator.serving.kv import Reserve
from moesim.simulator.terms import Slo

__all__ = ["Serving", "parse_slo"]

_MILLISECOND_NS = 10**6


@dataclass(frozen=True, slots=True)
class Serving:
    """Requests that arrive, in place of one recorded request after another.

    Attributes:
        arrivals: Their spec; see ``stream``.
        requests: How many, where the spec does not say.
        most_waiting: Requests that may wait at a time; those beyond are refused.
        reserve: What of its KV cache a request reserves when it begins; see ``KvRoom``.
        slo: What is promised to requests of a task; the empty task is any other.
    """

    arrivals: str
    requests: int | None = None
    most_waiting: int | None = None
    reserve: str = "whole"
    slo: Mapping[str, Slo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reserve not in get_args(Reserve):
            raise InputError(f"--kv-reserve {self.reserve}: expected whole or prompt")


def parse_slo(texts: Sequence[str]) -> dict[str, Slo]:
    """Return promises from ``ttft=500,tpot=50`` (ms), with ``TASK:`` in front for one task.

    Raises:
        InputError: A promise cannot be read.

    >>> parse_slo(["go:ttft=500", "tpot=50"])["go"].ttft_ns
    500000000
    """
    found: dict[str, Slo] = {}
    for text in texts:
        task, _, items = text.rpartition(":")
        promises: dict[str, int] = {}
        for item in items.split(","):
            name, _, value = item.partition("=")
            try:
                promises[f"{name}_ns"] = round(float(value) * _MILLISECOND_NS)
            except (ValueError, OverflowError):
                promises[f"{name}_ns"] = 0
        if not promises.keys() <= {*Slo._fields} or min(promises.values()) <= 0:
            raise InputError(
                f"--slo {text}: expected [TASK:]ttft=MS,tpot=MS,e2e=MS, any of the three"
            )
        found[task] = Slo(**promises)
    return found
