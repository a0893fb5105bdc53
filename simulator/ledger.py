"""What happened in a run: counts, bytes by cause, busy times; the books are balanced at its end.

The controller counts decisions, the driver measures times; ``check`` proves that they agree. All
figures are integers, so sums are exact; ratios are computed where they are printed.
"""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from moesim.simulator.errors import BooksError
from moesim.simulator.terms import NO_PROMISE, Slo

if TYPE_CHECKING:
    from moesim.simulator.results.streamed_times import StreamedTimes


@dataclass(slots=True)
class Counts:
    """Decisions of one run, as the controller saw them.

    A demand is one distinct expert of one layer event. ``decode_`` figures are over the steps
    without prompt tokens. ``rerouted`` and ``skipped`` choices are those that a lossy schedule gave
    to another expert, or to none; demands are what it left. Bytes of a prefetch are *useful* if the
    expert was ready when demanded, *late* if it was demanded while on its way, *wasted* if it left,
    or the run ended, unused.

    Those are bytes that reached VRAM; ``peer`` says how many of them came from another GPU. Of what
    moved between the tiers below, ``nvme`` was read into RAM and ``demoted`` left VRAM for another
    tier. Where RAM cannot hold all experts, ``host_demands`` are the demands that looked for an
    expert in RAM, and ``host_hits`` those that found it there.
    """

    steps: int = 0
    output_tokens: int = 0
    demands: int = 0
    hits: int = 0
    late_hits: int = 0
    partial_hits: int = 0
    misses: int = 0
    decode_demands: int = 0
    decode_hits: int = 0
    evictions: int = 0
    copies: int = 0
    waves: int = 0
    cpu_experts: int = 0
    rerouted: int = 0
    skipped: int = 0
    bytes_demand: int = 0
    bytes_prefetch_useful: int = 0
    bytes_prefetch_late: int = 0
    bytes_prefetch_wasted: int = 0
    bytes_rebalance: int = 0
    bytes_peer: int = 0
    bytes_nvme: int = 0
    bytes_demoted: int = 0
    host_demands: int = 0
    host_hits: int = 0
    bytes_initial: int = 0
    peak_expert_bytes: int = 0

    @property
    def bytes_total(self) -> int:
        """Bytes that moved while the run went on; the initial placement is not timed."""
        return (
            self.bytes_demand
            + self.bytes_prefetch_useful
            + self.bytes_prefetch_late
            + self.bytes_prefetch_wasted
            + self.bytes_rebalance
        )

    def as_dict(self) -> dict[str, int]:
        """Return every count by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(slots=True)
class RequestTimes:
    """When one request arrived, and when each of its tokens was complete."""

    request: int
    arrived_ns: int
    began_ns: int
    prompt_tokens: int = 0
    token_ends_ns: list[int] = field(default_factory=list)
    has_first_token: bool = False
    slo: Slo = NO_PROMISE


@dataclass(slots=True)
class ServerCounts:
    """What requests did: how many were refused and why, and the most at one time.

    Of those refused, ``refused_promised`` were promised something. ``tokens`` went through the
    model; ``requests_in_steps`` is the sum over steps of the requests in each.
    """

    refused_too_long: int = 0
    refused_queue_full: int = 0
    refused_promised: int = 0
    most_waiting: int = 0
    most_in_step: int = 0
    most_kv_bytes: int = 0
    tokens: int = 0
    requests_in_steps: int = 0

    @property
    def refused(self) -> int:
        """Requests that were never served."""
        return self.refused_too_long + self.refused_queue_full


@dataclass(frozen=True, slots=True)
class GpuTimings:
    """What one of several GPUs did.

    Attributes:
        gpu_busy_ns: Time in kernels.
        link_busy_ns: Time in which its copy engine brought experts, waits for a share included.
        bytes_copied: Bytes of experts that it brought.
        copies: In so many copies.
        exchange_busy_ns: Time in which it sent activations to other GPUs.
        bytes_sent: Bytes of those.
    """

    gpu_busy_ns: int
    link_busy_ns: int
    bytes_copied: int
    copies: int
    exchange_busy_ns: int
    bytes_sent: int


@dataclass(slots=True)
class Timings:
    """What a driver measured; every ``busy_ns`` is the time its resource was in use.

    ``engines`` holds busy time by copy engine (``h2d``, ``d2h``, ``peer``, ``nvme``). Of the GPU's
    time, ``dense`` is attention, dense part and routers, ``experts`` the runs of experts, ``head``
    what makes the token, and ``slow_down`` what all three lost because copies ran beside them.
    ``longest_gap_ns`` is the longest time, in decode, for which a real host loop looked at nothing.
    ``idle_ns`` is the time in which an engine had no step to serve and waited for requests.
    ``calls_ns`` is what each call of the controller took a real host, in order.
    A run too long to keep ``requests`` leaves them empty and has ``streamed``. Of several GPUs the
    figures are those of the busiest GPU and of the busiest link, and ``by_gpu`` has each.
    """

    span_ns: int = 0
    gpu_busy_ns: int = 0
    dense_busy_ns: int = 0
    experts_busy_ns: int = 0
    head_busy_ns: int = 0
    slow_down_ns: int = 0
    host_busy_ns: int = 0
    cpu_busy_ns: int = 0
    decision_ns: int = 0
    longest_gap_ns: int = 0
    idle_ns: int = 0
    calls_ns: list[int] = field(default_factory=list)
    engines_busy_ns: dict[str, int] = field(default_factory=dict)
    engine_bytes: dict[str, int] = field(default_factory=dict)
    engine_copies: dict[str, int] = field(default_factory=dict)
    requests: list[RequestTimes] = field(default_factory=list)
    server: ServerCounts = field(default_factory=ServerCounts)
    peak_context_tokens: int = 0
    streamed: "StreamedTimes | None" = None
    by_gpu: list[GpuTimings] = field(default_factory=list)

    @property
    def link_busy_ns(self) -> int:
        """Busy time of the host-to-device link."""
        return self.engines_busy_ns.get("h2d", 0)


def check(counts: Counts, timings: Timings) -> None:
    """Balance the books of a finished run.

    Raises:
        BooksError: A sum is off; the message names it.
    """
    judged = counts.hits + counts.late_hits + counts.partial_hits + counts.misses
    moved = sum(timings.engine_bytes.values())
    between = counts.bytes_nvme + counts.bytes_demoted
    books = [
        ("demands", counts.demands, judged),
        ("copies", counts.copies, sum(timings.engine_copies.values())),
        ("bytes moved", counts.bytes_total + between, moved),
        ("bytes read from NVMe", counts.bytes_nvme, timings.engine_bytes.get("nvme", 0)),
    ]
    for name, expected, actual in books:
        if expected != actual:
            raise BooksError(f"the run's {name} do not add up: {expected} decided, {actual} seen")
    busy = {
        "gpu": timings.gpu_busy_ns,
        "host": timings.host_busy_ns,
        "cpu": timings.cpu_busy_ns,
        **timings.engines_busy_ns,
    }
    for name, busy_ns in busy.items():
        if not 0 <= busy_ns <= timings.span_ns:
            raise BooksError(f"{name} was busy {busy_ns} ns in a run of {timings.span_ns} ns")
