"""Which figures each kind of time rests on, and hence how sure it is.

The parts of a time are weighed as in one layer of one decode step of one request.
"""

from dataclasses import dataclass

from moesim.hardware_profiles.bands import Part, Term, Terms
from moesim.hardware_profiles.figures import Figure
from moesim.hardware_profiles.runtime_schema import RuntimeProfile
from moesim.hardware_profiles.schema import HardwareProfile

_PPM = 1_000_000
_SECOND_NS = 10**9


@dataclass(frozen=True, slots=True)
class Typical:
    """The work that weighs the parts: one layer of one decode step of one request.

    Attributes:
        expert_bytes: Of one expert.
        dense_bytes: Of the dense weights of one layer.
        head_bytes: Of what follows the last layer.
        chosen: Experts of one token and layer.
        least_band: What the kernels' bands cannot be less than, where these bytes are a guess.
    """

    expert_bytes: float
    dense_bytes: float
    head_bytes: float
    chosen: int
    least_band: float = 0.0


def terms(
    profile: HardwareProfile,
    runtime: RuntimeProfile,
    typical: Typical,
    *,
    looks_ahead: bool = False,
    shares_dram: bool = False,
) -> Terms:
    """Return how sure each kind of time is: copy, dense, experts, head, host and cpu.

    There is no cpu term where the runtime computes no experts on the CPU.
    """
    kernels = runtime.kernels
    looking = [_plain("kernels.look_ahead", kernels.look_ahead)] if kernels.look_ahead else []

    def reading(read_bytes: float, multiple: Figure[float], key: str) -> Part:
        gpu = profile.gpu
        rate = gpu.memory_bandwidth.value * gpu.memory_efficiency.value / _PPM
        return Part(
            read_bytes * _SECOND_NS / rate * multiple.value,
            {
                "gpu.memory_bandwidth": gpu.memory_bandwidth,
                "gpu.memory_efficiency": gpu.memory_efficiency,
                key: multiple,
            },
        )

    found = {
        "copy": Term(_copy_parts(profile, runtime, typical.expert_bytes)),
        "dense": Term(
            [
                reading(typical.dense_bytes, kernels.dense_multiple, "kernels.dense_multiple"),
                _plain("kernels.dense_fixed", kernels.dense_fixed),
                *(looking if looks_ahead else []),
            ],
            typical.least_band,
        ),
        "experts": Term(
            [
                reading(
                    typical.chosen * typical.expert_bytes,
                    kernels.expert_multiple,
                    "kernels.expert_multiple",
                ),
                _plain("kernels.expert_fixed", kernels.expert_fixed),
            ],
            typical.least_band,
        ),
        "head": Term(
            [
                reading(typical.head_bytes, kernels.dense_multiple, "kernels.dense_multiple"),
                _plain("kernels.head_fixed", kernels.head_fixed),
            ],
            typical.least_band,
        ),
        "host": Term(_host_parts(runtime, typical.chosen)),
    }
    if runtime.cpu_experts is not None:
        host = profile.host
        rates = {"host.expert_bandwidth": host.expert_bandwidth}
        if shares_dram:
            rates["host.expert_bandwidth_while_copying"] = host.expert_bandwidth_while_copying
            rates["host.dram_bandwidth"] = host.dram_bandwidth
        found["cpu"] = Term(
            [
                _plain("cpu_experts.hand_over", runtime.cpu_experts.hand_over),
                Part(typical.expert_bytes * _SECOND_NS / host.expert_bandwidth.value, rates),
                _plain("cpu_experts.notice", runtime.cpu_experts.notice),
            ]
        )
    return Terms(found)


def tier_terms(profile: HardwareProfile, typical: Typical) -> Terms:
    """Return how sure the copies from further tiers are, of those that there are: nvme, peer."""
    routes = {"nvme": ("nvme", profile.nvme), "peer": ("link.peer", profile.link.peer)}
    return Terms(
        {
            name: Term(
                [
                    _plain(f"{key}.latency", route.latency),
                    Part(
                        typical.expert_bytes * _SECOND_NS / route.bandwidth.value[-1].bytes_per_s,
                        {f"{key}.bandwidth": route.bandwidth},
                    ),
                ]
            )
            for name, (key, route) in routes.items()
            if route is not None
        }
    )


def _plain(key: str, figure: Figure[int], times: int = 1) -> Part:
    return Part(times * figure.value, {key: figure})


def _copy_parts(
    profile: HardwareProfile, runtime: RuntimeProfile, expert_bytes: float
) -> list[Part]:
    copying = runtime.copying
    pinned = copying.source == "pinned"
    route, key = (profile.link.h2d, "h2d") if pinned else (profile.link.pageable, "pageable")
    rate = route.bandwidth.value[-1].bytes_per_s
    kernels = runtime.kernels
    around = {
        "kernels.expert_after_copy": kernels.expert_after_copy,
        "kernels.expert_while_copying": kernels.expert_while_copying,
    }
    return [
        _plain(f"link.{key}.latency", route.latency, copying.pieces_per_expert),
        Part(expert_bytes * _SECOND_NS / rate, {f"link.{key}.bandwidth": route.bandwidth}),
        _plain("copying.overhead", copying.overhead, copying.pieces_per_expert),
        *([] if copying.start is None else [_plain("copying.start", copying.start)]),
        *(_plain(key, figure) for key, figure in around.items() if figure is not None),
    ]


def _host_parts(runtime: RuntimeProfile, chosen: int) -> list[Part]:
    row = runtime.decisions.default
    return [
        _plain("launch.layer", runtime.launch.layer),
        _plain("launch.run", runtime.launch.run),
        _plain("launch.per_expert", runtime.launch.per_expert, chosen),
        _plain("launch.event", runtime.launch.event),
        _plain("wait.router", runtime.wait.router),
        _plain("wait.poll", runtime.wait.poll),
        _plain("decisions.default.base", row.base),
        _plain("decisions.default.per_expert", row.per_expert, chosen),
        _plain("decisions.default.per_command", row.per_command),
    ]
