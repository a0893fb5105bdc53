"""Which options a system takes where a trace lacks what it would read by default.

FineMoE reads whole gate distributions and embeddings. A trace that kept the best of a distribution
alone, or no embeddings, is served with the options that say so (``simulator/systems``).
"""

from collections.abc import Container, Mapping

from moesim.simulator import registry
from moesim.simulator.registry import Axis

# What is read by default, the option and its value without it, and what is read instead.
INSTEAD = (
    ("router_probs_TLE", "maps", "top", ("router_top_TLM", "router_top_score_TLM")),
    ("embedding_TD", "semantic", "none", ()),
)


def suited(policies: Mapping[Axis, str], signals: Container[str]) -> dict[Axis, str]:
    """Return policies that read what there is, where an option allows it; others as they are.

    >>> suited({"prefetch": "expert_map:distance=3"}, {"router_probs_TLE"})
    {'prefetch': 'expert_map:distance=3,semantic=none'}
    """
    return {axis: _suited(axis, text, signals) for axis, text in policies.items()}


def _suited(axis: Axis, text: str, signals: Container[str]) -> str:
    for lacking, option, value, others in INSTEAD:
        spec = registry.parse(axis, text)
        reads = spec.inner is None and lacking in spec.needs and lacking not in signals
        has_option = option in registry.options(spec.cls) and option not in spec.options
        if reads and has_option and all(other in signals for other in others):
            text += f"{',' if ':' in text else ':'}{option}={value}"
    return text
