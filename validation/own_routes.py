"""What a backend must show before its times mean anything: equal decisions, equal logits.

A system generates on the model's own routes. Its logits are compared with those of the model with
every expert resident, and its commands with those of a replay of the very routes it served.
"""

from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution, Log
from moesim.backends.forcing import TOKENS
from moesim.backends.models import Model
from moesim.backends.testing import first_difference
from moesim.simulator.controller import Controller
from moesim.simulator.demands import Workload
from moesim.simulator.engine_counts import count
from moesim.traces import RoutingTrace
from moesim.validation.beside import Check
from moesim.validation.deciding import Decided
from moesim.validation.subject import Logits, Subject

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 2, 24, 12
BUDGET = "25%"


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
    top_k = subject.opened.store.parts.top_k
    return check, Decided.of(done, _fresh(subject, deciding), top_k)


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
