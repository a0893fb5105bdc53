"""What a backend must show before its times mean anything: equal decisions, equal logits.

A system generates on the model's own routes. Its logits are compared with those of the model with
every expert resident, and its commands with those of a replay of the very routes it served.
"""

from moesim.backends.controllers import Deciding
from moesim.backends.execution import Execution, Keep, Log, execute
from moesim.backends.generation import Request, Sampling
from moesim.backends.testing import first_difference
from moesim.simulator.demands import Workload
from moesim.simulator.engine_counts import count
from moesim.validation.cpu import Subject
from moesim.validation.evidence import Check


def check_system(subject: Subject, deciding: Deciding) -> Check:
    """Run one system on the subject's prompts and compare.

    Args:
        subject: The model, and its logits when every expert was resident.
        deciding: The system; one that is timing-free is compared with a replay, any other with a
            fresh controller that is fed the facts.
    """
    done = execute(
        subject.model,
        subject.store,
        [Request(prompt=prompt) for prompt in subject.prompts],
        deciding,
        Sampling(new_tokens=subject.new_tokens, ignore_eos=True),
        keep=Keep(logits=True, log=True),
    )
    assert done.log is not None
    assert done.logits is not None
    pairs = [
        (ours, theirs)
        for request, resident in zip(done.logits, subject.resident, strict=True)
        for ours, theirs in zip(request, resident, strict=True)
    ]
    return Check(
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


def _first_difference(
    subject: Subject, deciding: Deciding, done: Execution, log: Log
) -> str | None:
    parts, sizes_L = subject.store.parts, subject.store.sizes_L
    fresh = deciding.controller(
        experts=parts.experts, top_k=parts.top_k, sizes_L=sizes_L, keep_log=True
    )
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
