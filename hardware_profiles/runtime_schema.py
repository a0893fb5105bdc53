"""A runtime profile: what the serving software adds to what the machine can do.

The same policy on the same GPU runs at very different speeds under different software. Costs of
the host, the way weights are copied and the quality of the kernels stand here, machines do not.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from moesim.hardware_profiles.figures import (
    Bytes,
    Count,
    Figure,
    Multiple,
    Nanoseconds,
    ProfileFile,
    Strict,
)
from moesim.hardware_profiles.files import find, names_in, read

FOLDER = Path(__file__).parent / "runtimes"


class Launch(Strict):
    """Host time to start work on the GPU.

    Attributes:
        layer: Attention, dense part and router of one layer.
        run: One run of experts, whatever their number.
        per_expert: Each expert of a run, on top.
        event: Recording or waiting for one event.
        prompt_layer: As `layer` in a step that has prompt tokens; absent where it is the same.
        prompt_expert: As `per_expert` in such a step.
        prompt_run: As `run` in such a step.
    """

    layer: Figure[Nanoseconds]
    run: Figure[Nanoseconds]
    per_expert: Figure[Nanoseconds]
    event: Figure[Nanoseconds]
    prompt_layer: Figure[Nanoseconds] | None = None
    prompt_expert: Figure[Nanoseconds] | None = None
    prompt_run: Figure[Nanoseconds] | None = None


class Wait(Strict):
    """Host time to learn what happened.

    Attributes:
        router: From the end of the router on the GPU until the host has the chosen experts.
        poll: Asking once what has ended.
    """

    router: Figure[Nanoseconds]
    poll: Figure[Nanoseconds]


class Copying(Strict):
    """How expert weights travel.

    Attributes:
        source: Pinned memory, or pageable memory (slower, and staged by the driver).
        blocking: Whether the host thread waits for the end of each copy.
        pieces_per_expert: 1 if an expert is one block of bytes; 2 or 3 if each tensor is copied.
        issue: Host time for each piece.
        overhead: Time for which the copy engine stands still around each piece, beyond the link's
            latency.
        start: From the host's call until the bytes move, where the engine stood still; absent where
            it was not measured.
        window: Bytes of prefetches handed over ahead; what was handed over is irrevocable.
    """

    source: Literal["pinned", "pageable"]
    blocking: bool
    pieces_per_expert: Count
    issue: Figure[Nanoseconds]
    overhead: Figure[Nanoseconds]
    start: Figure[Nanoseconds] | None = None
    window: Bytes


class Kernels(Strict):
    """Kernel time as multiples of the roofline floor, plus what does not shrink with the work.

    Attributes:
        dense_multiple: Of attention, dense part, head.
        dense_fixed: Added to each layer's dense part: its many small kernels.
        expert_multiple: Of the experts.
        expert_fixed: Added to each run of experts.
        head_fixed: Added to the head: sampling, and the token's way to the host.
        attention_multiple: Of reading the KV cache and of its products; absent where it is
            `dense_multiple`.
        qk_norm: Added to a layer that normalises queries and keys; absent where it is nothing.
        kv_repeat: Added to a layer with fewer heads of keys and values than of queries, by software
            that repeats them; absent where it does not.
        kv_repeat_multiple: Of reading the repeated cache, on top of `attention_multiple` of the
            cache as it is.
        look_ahead: Added to a layer whose residual later routers are asked about, for a policy
            that reads what they say; absent where it is nothing.
        expert_compute_multiple: Of the experts' products where they, not reading the weights, take
            the time; absent where it is `expert_multiple`.
        expert_after_copy: From the end of a copy until a run that waits for it begins; absent where
            it is nothing.
        expert_while_copying: Added to a run that begins while copies run, beside the share by which
            the machine slows all kernels down: what it fetches over the same link; absent where it
            is nothing.
    """

    dense_multiple: Figure[Multiple]
    dense_fixed: Figure[Nanoseconds]
    expert_multiple: Figure[Multiple]
    expert_fixed: Figure[Nanoseconds]
    head_fixed: Figure[Nanoseconds]
    attention_multiple: Figure[Multiple] | None = None
    qk_norm: Figure[Nanoseconds] | None = None
    kv_repeat: Figure[Nanoseconds] | None = None
    kv_repeat_multiple: Figure[Multiple] | None = None
    look_ahead: Figure[Nanoseconds] | None = None
    expert_compute_multiple: Figure[Multiple] | None = None
    expert_after_copy: Figure[Nanoseconds] | None = None
    expert_while_copying: Figure[Nanoseconds] | None = None


class CpuExperts(Strict):
    """Experts computed where their weights are.

    Attributes:
        hand_over: From the decision until the workers have begun, without the activations' copy.
        notice: From the last product until the host thread knows.
    """

    hand_over: Figure[Nanoseconds]
    notice: Figure[Nanoseconds]


class Decision(Strict):
    """The time that one decision takes: base + per_expert * experts + per_command * commands."""

    base: Figure[Nanoseconds]
    per_expert: Figure[Nanoseconds]
    per_command: Figure[Nanoseconds]


class Decisions(Strict):
    """Where decisions are taken and what they cost.

    Attributes:
        place: The processor that is busy meanwhile.
        default: For a system without a row of its own.
        systems: Rows by name of the system.
    """

    place: Literal["host", "device"]
    default: Decision
    systems: dict[str, Decision] = Field(default_factory=dict)


class Memory(Strict):
    """VRAM that the software keeps for itself.

    Attributes:
        workspace: Activations, graphs, buffers of kernels; neither weights nor KV cache.
    """

    workspace: Figure[Bytes]


class RuntimeProfile(ProfileFile):
    """What one serving software adds.

    Attributes:
        cpu_experts: Absent where the software cannot compute experts on the CPU.
    """

    launch: Launch
    wait: Wait
    copying: Copying
    kernels: Kernels
    cpu_experts: CpuExperts | None = None
    decisions: Decisions
    memory: Memory


def runtime_names() -> list[str]:
    """Return the names of the runtimes that ship."""
    return names_in(FOLDER)


def load_runtime(name_or_path: str | Path) -> RuntimeProfile:
    """Return the runtime of that name, or the one in that file.

    Raises:
        ProfileError: If there is none (the names are listed) or the file is faulty.
    """
    return read(find(name_or_path, FOLDER, "runtime"), RuntimeProfile)


def runtime_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a runtime profile."""
    return RuntimeProfile.model_json_schema(by_alias=True)
