"""How a run is served, as the user says it: who arrives, on which terms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from moesim.simulator.errors import InputError
from moesim.simulator.key_values import key_values
from moesim.simulator.serving.kv import Reserve
from moesim.simulator.terms import MILLISECOND_NS, Slo

__all__ = ["Serving", "parse_slo"]

_FORM = "[TASK:]ttft=MS,tpot=MS,e2e=MS, any of the three"


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
        InputError: A promise cannot be read, or is made twice.

    >>> parse_slo(["go:ttft=500", "tpot=50"])["go"].ttft_ns
    500000000
    """
    said: dict[str, list[str]] = {}
    for text in texts:
        task, _, promises = text.rpartition(":")
        said.setdefault(task, []).append(promises)
    return {task: _slo(task, ",".join(promises)) for task, promises in said.items()}


def _slo(task: str, text: str) -> Slo:
    where = f"--slo {task}:{text}" if task else f"--slo {text}"
    promised: dict[str, int] = {}
    for name, value in key_values(text, where, form=_FORM).items():
        try:
            promised[f"{name}_ns"] = round(float(value) * MILLISECOND_NS)
        except (ValueError, OverflowError):
            promised[f"{name}_ns"] = 0
    if not promised or not promised.keys() <= {*Slo._fields} or min(promised.values()) <= 0:
        raise InputError(f"{where}: expected {_FORM}")
    return Slo(**promised)
