"""What a backend must show before its times mean anything: equal decisions, equal logits.

A system generates on the model's own routes. Its logits are compared with those of the model with
every expert resident, and its commands with those of a replay of the very routes it served. What
its decisions took meanwhile is what they will be charged.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from moesim.backends.controllers import LIVE_SIGNALS, Deciding
from moesim.backends.drivers.cuda.machine import DeviceError, reason
from moesim.backends.execution import Execution, Log
from moesim.backends.forcing import TOKENS
from moesim.backends.models import Model
from moesim.backends.testing import first_difference
from moesim.backends.told import told_by
from moesim.simulator.commands.policies import Choice
from moesim.simulator.controller import Controller
from moesim.simulator.costs import CostModel
from moesim.simulator.engines.counts import count
from moesim.simulator.errors import MoesimError, OutOfMemoryError
from moesim.simulator.run_spec import GRANTS
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace
from moesim.validation.beside import Check, Checks
from moesim.validation.deciding import Decided
from moesim.validation.evidence_files import CHECKS, read_checks, write
from moesim.validation.provenance import UNKNOWN, is_commit
from moesim.validation.subject import Logits, Subject

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 2, 24, 12
BUDGET = "25%"
OF_ALL = (OutOfMemoryError, torch.OutOfMemoryError, MemoryError, DeviceError)
"""What ends a session: nobody else would run on this machine either."""


def prompts_of(trace: RoutingTrace, model: Model) -> list[list[int]]:
    """Return the beginnings of a trace's first prompts, or tokens that count up."""
    vocabulary = model.config.get_text_config().vocab_size
    starts = trace.row_starts().tolist()
    kept = trace.signals.get(TOKENS)
    return [
        [position % vocabulary for position in range(PROMPT_TOKENS)]
        if kept is None
        else [int(token) % vocabulary for token in kept[starts[n] : starts[n] + PROMPT_TOKENS]]
        for n in range(min(PROMPTS, trace.requests))
    ]


class Trying(NamedTuple):
    """What systems are tried on, and what of that is known.

    Attributes:
        subject: The model.
        costs: For policies that ask how long things take.
        tested: Claims are made on it: only its prompts are used.
        fitted: Calibrations look at it, and so may this.
        profile: What systems that are profiled offline look at.
        commit: Of the code.
        charged: Systems of which it is known what their decisions take here; None asks for none.
    """

    subject: Subject
    costs: CostModel
    tested: RoutingTrace
    fitted: RoutingTrace
    profile: RoutingTrace | None = None
    commit: str = UNKNOWN
    charged: Collection[str] | None = None

    def knows(self, check: Check) -> bool:
        """Return whether a system was checked before, as the code is now, and need not be again."""
        is_this_code = check.commit == self.commit and is_commit(self.commit)
        return (
            is_this_code
            and check.fault is None
            and (self.charged is None or check.system in self.charged)
        )

    def on_own_routes(self, deciding: Deciding) -> tuple[Check | None, Decided]:
        """Let a system generate; there is no check where nothing can hold every expert."""
        resident = self.subject.resident_for(deciding)
        if resident is not None:
            check, decided = check_system(self.subject, resident, deciding)
            return check.model_copy(update={"commit": self.commit}), decided
        return None, _decided(self.subject, deciding, self.subject.generate(deciding))

    def on_routes_of_a_trace(self, deciding: Deciding) -> Decided | None:
        """Serve the fitted request, whose signals a system is told; None for another topology."""
        subject, fitted = self.subject, self.fitted
        parts = subject.opened.store.parts
        ours = len(parts.layers), parts.experts, parts.top_k
        deciding = told_by(fitted, deciding)
        if _unknown(deciding) or ours != (fitted.layers, fitted.experts, fitted.top_k):
            return None
        return _decided(subject, deciding, subject.serve(deciding, fitted))


def try_systems(
    trying: Trying, choices: Sequence[Choice], folder: Path, say: Callable[[str], None]
) -> tuple[tuple[Check, ...], dict[str, Decided]]:
    """Check the systems that can be checked; return what the folder then knows of those asked for.

    Beside it stands what the decisions took of those that ran. Where something goes wrong with one
    system its check has failed, and the others go on.

    Args:
        trying: What they are tried on.
        choices: The systems.
        folder: Of the evidence.
        say: Told what happens.

    Raises:
        OutOfMemoryError: Memory does not do for it.
        DeviceError: The GPU failed.
    """
    known = {check.system: check for check in read_checks(folder)}
    executed: dict[str, Decided] = {}
    if trying.subject.resident is None:
        say("own routes: not checked, nothing here holds every expert at once")
    budget_bytes = trying.subject.budget_bytes(BUDGET, trying.tested)
    for choice in choices:
        if choice.system in known and trying.knows(known[choice.system]):
            say(f"{choice.system}: own routes checked before")
            continue
        deciding = Deciding(
            policies=choice.policies,
            budget_bytes=budget_bytes,
            system=choice.system,
            costs=trying.costs,
            profile_trace=trying.profile,
        )
        known.pop(choice.system, None)
        check, decided = _try(trying, deciding, say)
        if decided is not None:
            executed[choice.system] = decided
        if check is not None:
            known[check.system] = check
            how = "passed" if check.passed else "FAILED"
            what = check.fault or f"{check.decisions} decisions"
            say(f"{choice.system}: own routes, {what}, {how}")
        if known or (folder / CHECKS).exists():
            write(folder / CHECKS, Checks(checks=tuple(known.values())))
    return tuple(known[choice.system] for choice in choices if choice.system in known), executed


def _try(
    trying: Trying, deciding: Deciding, say: Callable[[str], None]
) -> tuple[Check | None, Decided | None]:
    unknown = _unknown(deciding)
    if unknown:
        what = ", ".join(unknown)
        say(f"{deciding.system}: own routes not checked, an execution cannot tell {what}")
    try:
        if unknown or not trying.subject.prompts:
            return None, trying.on_routes_of_a_trace(deciding)
        return trying.on_own_routes(deciding)
    except OF_ALL:
        raise
    except Exception as error:  # noqa: BLE001  whatever it is, it is this system's
        kind = "" if isinstance(error, MoesimError) else f"{type(error).__name__}: "
        return Check.broken(
            deciding.system,
            f"{kind}{reason(error)}",
            timing_free=deciding.timing_free,
            commit=trying.commit,
        ), None


def check_system(subject: Subject, resident: Logits, deciding: Deciding) -> tuple[Check, Decided]:
    """Run one system on the subject's prompts and compare; return also what decisions took.

    Args:
        subject: The model.
        resident: Its logits when every expert was resident.
        deciding: The system; one that is timing-free is compared with a replay, any other with a
            fresh controller that is fed the facts.
    """
    done = subject.generate(deciding)
    assert done.log is not None
    assert done.logits is not None
    pairs = [
        (ours, theirs)
        for request, expected in zip(done.logits, resident, strict=True)
        for ours, theirs in zip(request, expected, strict=True)
    ]
    check = Check(
        system=deciding.system,
        timing_free=deciding.timing_free,
        decisions=sum(len(answer) for _, _, answer in done.log),
        first=_first_difference(subject, deciding, done, done.log),
        largest_logit_difference=max(
            float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in pairs
        ),
        lossless_on_gpu=done.counts.cpu_experts == 0,
        same_text=all(int(ours.argmax()) == int(theirs.argmax()) for ours, theirs in pairs),
    )
    return check, _decided(subject, deciding, done)


def _unknown(deciding: Deciding) -> list[str]:
    """Return what a system reads that neither an execution tells nor a trace."""
    return sorted(deciding.needs - deciding.told - LIVE_SIGNALS - GRANTS)


def _decided(subject: Subject, deciding: Deciding, done: Execution) -> Decided:
    return Decided.of(done, _fresh(subject, deciding), subject.opened.store.parts.top_k)


def _fresh(subject: Subject, deciding: Deciding) -> Controller:
    store = subject.opened.store
    parts = store.parts
    return deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=store.sizes_L, keep_log=True
    )


def _first_difference(
    subject: Subject, deciding: Deciding, done: Execution, log: Log
) -> str | None:
    fresh = _fresh(subject, deciding)
    if not deciding.timing_free:
        return first_difference(log, fresh)
    count(fresh, Workload(done.trace), budget_bytes=deciding.budget_bytes)
    assert fresh.log is not None
    ours, theirs = ([c for _, _, answer in one for c in answer] for one in (fresh.log, log))
    for at, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return f"command {at}: replay {mine}, execution {other}"
    if len(ours) != len(theirs):
        return f"the replay has {len(ours)} commands, the execution {len(theirs)}"
    return None
