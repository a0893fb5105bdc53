"""Which pieces of which models are timed, which no fit sees, and what their probes are called."""

from moesim.backends.calibration.pieces import LOOKING

MODELS = {"olmoe": 4, "qwen3-30b-a3b": 4, "mixtral-8x7b": 3}
"""Shapes whose pieces are timed, and how many layers of each are built."""
FITTED = "olmoe"
FEW_LAYERS, MANY_LAYERS = 4, 16
CONTEXTS = (128, 1024, 4096)
HELD_CONTEXTS = (2048,)
FEWEST_RUN = {"olmoe": (1, 4, 8), "qwen3-30b-a3b": (1, 8), "mixtral-8x7b": (1, 2)}
HELD_RUNS = {"olmoe": (2,), "qwen3-30b-a3b": (4,), "mixtral-8x7b": ()}
PROMPTS = {"olmoe": (512, 2048), "qwen3-30b-a3b": (2048,), "mixtral-8x7b": (512, 2048)}
HELD_PROMPTS = {"olmoe": (1024,), "qwen3-30b-a3b": (512,), "mixtral-8x7b": (1024,)}
LARGE = "mixtral-8x7b"
HEAD_CONTEXT = CONTEXTS[0]
ATTENTION = "attention piece"


def dense_name(name: str, context: int) -> str:
    """Return what the probe of attention pieces is called."""
    if context == LOOKING:
        return f"{ATTENTION} of {name}, cache of {CONTEXTS[0]}, looking ahead"
    return f"{ATTENTION} of {name}, cache of {context}"


def run_name(name: str, experts: int) -> str:
    """Return what the probe of runs of so many experts is called."""
    return f"run of {experts} experts of {name}"


def prompt_name(name: str, tokens: int) -> str:
    """Return what the probe of a prompt's experts is called."""
    return f"experts of {name}, prompt of {tokens}"


def head_name(name: str) -> str:
    """Return what the probe of the last piece is called."""
    return f"head piece of {name}"
