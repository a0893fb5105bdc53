"""Which experts the kernels compute; the others are computed with torch, matrix by matrix."""

from typing import Any

from moesim.backends.formats import Format, format_of
from moesim.simulator.errors import CapabilityError

SILU = frozenset({"SiLU", "SiLUActivation"})


def readable_format(module: Any) -> Format:
    """Return the format of an experts module of transformers, if the kernels compute it.

    Args:
        module: One whose fused parameters are still in place, or at least its flags.

    Raises:
        CapabilityError: They do not; the message says what they lack.
    """
    kind = type(module).__name__
    activation = type(getattr(module, "act_fn", None)).__name__
    lacks = {
        "matrices stored transposed": getattr(module, "is_transposed", False),
        "gate and up interleaved": not getattr(module, "is_concatenated", True),
        "biases": getattr(module, "has_bias", False),
        "experts without a gate": not getattr(module, "has_gate", True),
        f"the activation {activation}": activation not in SILU,
    }
    found = [what for what, is_so in lacks.items() if is_so]
    if found:
        raise CapabilityError(
            f"{kind}: no Triton kernel for {', '.join(found)}; torch computes these experts"
        )
    return format_of(module.gate_up_proj.dtype)
