"""What the single figures leave over of whole tokens: the host's time around its calls.

Two clocks, host and GPU, say what a step takes if every expert is resident. What it takes beyond
that is, per layer, ``wait.router``, per token ``kernels.head_fixed``, per layer and expert of a
prompt ``launch.prompt_layer`` and ``launch.prompt_expert``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from moesim.backends.calibration import sheet as write
from moesim.simulator.costs import CostModel

SYSTEM = "on-demand"
ROUNDS_TO_FIT = 4


@dataclass(frozen=True, slots=True)
class Times:
    """What a session took, in ns: a token, the short prompt, the long prompt."""

    token: float
    short: float
    prompt: float


def step_ns(
    costs: CostModel, tokens: int, context: int, loads: Sequence[int], *, is_prompt: bool
) -> int:
    """Return the time from one token's end to the next if every expert is resident.

    Two clocks say it, host and GPU: there is nothing to decide and nothing moves.

    Args:
        costs: How long things take.
        tokens: Of the step.
        context: Positions attended to.
        loads: Tokens that each chosen expert serves, the same in every layer.
        is_prompt: Whether the step is a prompt.
    """
    layers = len(costs.shape.layers)
    launch_ns = costs.launch_prompt_layer_ns if is_prompt else costs.launch_layer_ns
    run_ns = costs.launch_run_ns(len(loads), is_prompt=is_prompt)
    reading_ns = costs.sync_ns + costs.poll_ns
    kernels = [costs.attention_ns(layer, tokens, context) for layer in range(layers)]
    host_ns = costs.decision_ns(SYSTEM, 0, 1) + costs.decision_ns(SYSTEM, 0, 0) + launch_ns
    gpu_ns = host_ns + kernels[0]
    for layer, kernel_ns in enumerate([*kernels[1:], costs.head_ns(1)]):
        host_ns = max(host_ns, gpu_ns) + reading_ns
        host_ns += costs.decision_ns(SYSTEM, len(loads), 2) + run_ns
        gpu_ns = max(gpu_ns, host_ns) + costs.experts_gpu_ns(layer, loads)
        host_ns += launch_ns
        gpu_ns = max(gpu_ns, host_ns) + kernel_ns
    return max(host_ns, gpu_ns) + reading_ns


@dataclass(frozen=True, slots=True)
class Rest:
    """What the single figures leave over, in ns."""

    router: float = 0.0
    head: float = 0.0
    prompt_layer: float = 0.0
    prompt_expert: float = 0.0

    def put(self, runtime: Mapping[str, Any], sources: tuple[str, str]) -> dict[str, Any]:
        """Return a runtime's tree with these figures in it.

        Args:
            runtime: All its other sections.
            sources: Of what decode tokens tell, and prompts.
        """
        decode, prompts = sources
        return {
            **runtime,
            "wait": {**runtime["wait"], "router": [write.ns(self.router), decode]},
            "kernels": {**runtime["kernels"], "head_fixed": [write.ns(self.head), decode]},
            "launch": {
                **runtime["launch"],
                "prompt_layer": [write.ns(self.prompt_layer), prompts],
                "prompt_expert": [write.ns(self.prompt_expert), prompts],
            },
        }


class Timed(Protocol):
    """A model whose tokens were timed, as far as the fit knows it."""

    @property
    def layers(self) -> int:
        """How many MoE layers it has."""
        ...

    @property
    def experts(self) -> int:
        """How many experts each has."""
        ...

    @property
    def short_experts(self) -> int:
        """How many of them the short prompt uses."""
        ...


Model = TypeVar("Model", bound=Timed)


def rest_of(
    sessions: tuple[Model, Model],
    measured: tuple[Times, Times],
    explained: Callable[[Model, Rest], Times],
) -> Rest:
    """Find the figures with which the sessions take what was measured.

    Args:
        sessions: The same model with few layers and with many.
        measured: What they took.
        explained: What a session takes with a given rest.
    """
    few, many = sessions
    rest = Rest()
    for _ in range(ROUNDS_TO_FIT):
        left = [
            (took, explained(session, rest))
            for session, took in zip(sessions, measured, strict=True)
        ]
        token = [took.token - says.token for took, says in left]
        short = [took.short - says.short for took, says in left]
        prompt = [took.prompt - says.prompt for took, says in left]
        per_layer = (token[1] - token[0]) / (many.layers - few.layers)
        router = max(0.0, rest.router + per_layer)
        moved = router - rest.router
        head = max(0.0, rest.head + token[1] - (many.layers + 1) * moved)
        span = many.experts - many.short_experts
        per_expert = (prompt[1] - short[1]) / many.layers / span
        expert = max(0.0, rest.prompt_expert + per_expert)
        moved = expert - rest.prompt_expert
        per_prompt_layer = short[1] / many.layers - many.short_experts * moved
        rest = Rest(router, head, max(0.0, rest.prompt_layer + per_prompt_layer), expert)
    return rest
