"""How long things take: machine x runtime x model -> integer nanoseconds.

Kernels take their roofline floor (the longer of reading the weights and doing the products) times
the runtime's multiple, plus what does not shrink with the work. Copies take latency plus bytes over
bandwidth. Nothing here knows a clock, a queue or a policy: contention is the engine's business.
"""

from collections.abc import Container, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, Self

from moesim.hardware_profiles import HardwareProfile, RuntimeProfile
from moesim.hardware_profiles.bands import Terms
from moesim.hardware_profiles.certainty import Typical, terms, tier_terms
from moesim.hardware_profiles.figures import Kind
from moesim.hardware_profiles.link import Route
from moesim.hardware_profiles.round_numbers import round_machine, round_runtime
from moesim.hardware_profiles.runtime_schema import Decision
from moesim.simulator.errors import CapabilityError
from moesim.simulator.models.cost_shape import CostLayer, CostShape

CopyKind = Literal["h2d", "d2h", "peer", "nvme"]

LOOK_IN = "look_in_TLHM"
"""The signal whose producer is charged to the layer that it is computed in."""
_SECOND_NS = 10**9
WHOLE_PPM = 1_000_000
_ACTIVATION_BYTES = 2
_GUESSED_BYTES_BAND = 0.25
_MEMO_ENTRIES = 4096
_SHORT_CONTEXT = 512


def to_ns(time_ns: float | Fraction) -> int:
    """Return a duration as the clock counts it: half to even, at least 0.

    >>> to_ns(2.5), to_ns(3.5), to_ns(-1.0)
    (2, 4, 0)
    """
    return max(0, round(time_ns))


class CostModel:
    """Costs of one model on one machine under one runtime.

    Plain host costs are attributes, all in integer ns: `launch_layer_ns`, `launch_prompt_layer_ns`
    (in a step with prompt tokens), `event_ns`, `sync_ns` (from the router's end until the host has
    its choice), `poll_ns`.

    Args:
        profile: The machine.
        runtime: What the software adds.
        shape: The model.
        looks_ahead: Whether each layer's residual is shown to later routers; see `LOOK_IN`.
        shares_dram: Whether copies, CPU experts and reads from NVMe get shares of the host's DRAM.

    Attributes:
        slow_down_ppm: By how much kernels are longer while copies run; see `slowed_ns`.
        run_while_copying_ns: What a run of experts takes on top then.
        run_after_copy_ns: From a copy's end until a run that waits for it begins.
        pause_threshold_ns: A copy that begins after the link idled longer takes longer.
        window_bytes: Default of the run's window of prefetches handed over.
        copies_block_host: The host waits for the end of each copy.
        decides_on: The processor that `decision_ns` occupies.
        workspace_bytes: VRAM that the runtime keeps for itself.
        class_L: The class of each layer; those of one class cost the same.
        terms: How sure each kind of time is: copy, dense, experts, head, host, and cpu where there
            is one.
        evidence: The weakest evidence of all terms.
        band: The widest relative band of all terms.
    """

    def __init__(
        self,
        profile: HardwareProfile,
        runtime: RuntimeProfile,
        shape: CostShape,
        *,
        looks_ahead: bool = False,
        shares_dram: bool = False,
    ) -> None:
        self.profile = profile
        self.runtime = runtime
        self.shape = shape
        self.looks_ahead, self.shares_dram = looks_ahead, shares_dram
        self.launch_layer_ns = runtime.launch.layer.value
        self.event_ns = runtime.launch.event.value
        self.sync_ns = runtime.wait.router.value
        self.poll_ns = runtime.wait.poll.value
        self.slow_down_ppm = profile.gpu.slow_down_while_copying.value
        self.pause_threshold_ns = profile.link.first_copy.after.value
        self.window_bytes = runtime.copying.window
        self.copies_block_host = runtime.copying.blocking
        self.decides_on = runtime.decisions.place
        self.workspace_bytes = runtime.memory.workspace.value

        gpu, kernels = profile.gpu, runtime.kernels
        self.run_while_copying_ns, self.run_after_copy_ns = (
            figure.value if figure else 0
            for figure in (kernels.expert_while_copying, kernels.expert_after_copy)
        )
        self._byte_ns = (
            _SECOND_NS * WHOLE_PPM / (gpu.memory_bandwidth.value * gpu.memory_efficiency.value)
        )
        compute_ns = _SECOND_NS * WHOLE_PPM / gpu.compute_efficiency.value
        self._flop_ns = compute_ns / gpu.bf16.value
        fp8 = gpu.fp8 if shape.weight_format == "fp8" else None
        self._weight_flop_ns = compute_ns / (fp8 or gpu.bf16).value
        self._dense_multiple = kernels.dense_multiple.value
        looking_ns = kernels.look_ahead.value if looks_ahead and kernels.look_ahead else 0
        self._dense_fixed_ns = kernels.dense_fixed.value + looking_ns
        self._expert_multiple = kernels.expert_multiple.value
        self._expert_compute_multiple = (
            kernels.expert_compute_multiple or kernels.expert_multiple
        ).value
        self._expert_fixed_ns = kernels.expert_fixed.value
        self._attention_multiple = (kernels.attention_multiple or kernels.dense_multiple).value
        self._qk_norm_ns = kernels.qk_norm.value if kernels.qk_norm else 0
        self._kv_repeat_ns = kernels.kv_repeat.value if kernels.kv_repeat else 0
        repeat = kernels.kv_repeat_multiple
        self._kv_repeat_multiple = repeat.value if repeat else 0.0
        self._head_fixed_ns = kernels.head_fixed.value
        launch = runtime.launch
        self.launch_prompt_layer_ns = (launch.prompt_layer or launch.layer).value
        self._launch_run_ns, self._launch_prompt_run_ns = (
            figure.value + self.event_ns for figure in (launch.run, launch.prompt_run or launch.run)
        )
        self._launch_per_expert_ns = launch.per_expert.value
        self._launch_prompt_expert_ns = (launch.prompt_expert or launch.per_expert).value

        copying = runtime.copying
        self._copy_issue_ns = copying.pieces_per_expert * copying.issue.value + self.event_ns
        self._decision = _row(runtime.decisions.default)
        self._decisions = {name: _row(row) for name, row in runtime.decisions.systems.items()}

        classes = [*dict.fromkeys(shape.layers)]
        self.class_L = [classes.index(layer) for layer in shape.layers]
        self._attention_memos: list[dict[tuple[int, int, int, int], int]] = _memos(self.class_L)
        self._expert_memos: list[dict[int, int]] = _memos(self.class_L)
        self._copy_memo: dict[tuple[int, str, int], int] = {}
        self.terms = terms(
            profile, runtime, _typical(shape), looks_ahead=looks_ahead, shares_dram=shares_dram
        )
        self.evidence: Kind = self.terms.evidence
        self.band = self.terms.band

    @classmethod
    def for_tests(
        cls,
        *,
        layers: int = 2,
        experts: int = 4,
        top_k: int = 2,
        expert_bytes: int = 1_000_000,
        dense_bytes: int = 500_000,
        head_bytes: int = 1_000_000,
        machine: Mapping[str, Any] | None = None,
        runtime: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return costs of round numbers; see `round_machine` and `round_runtime` for the options.

        >>> costs = CostModel.for_tests(machine={"link_latency_ns": 5_000})
        >>> costs.copy_ns(1_000_000), costs.experts_gpu_ns(0, [1, 1]), costs.head_ns(1)
        (105000, 2000, 1000)
        """
        shape = CostShape.from_bytes(
            [expert_bytes] * layers,
            [dense_bytes] * layers,
            experts=experts,
            top_k=top_k,
            name="round",
            head_bytes=head_bytes,
        )
        return cls(round_machine(**(machine or {})), round_runtime(**(runtime or {})), shape)

    def with_signals(self, names: Container[str]) -> Self:
        """Return the costs of a run in which these signals are produced."""
        if LOOK_IN not in names:
            return self
        return type(self)(
            self.profile,
            self.runtime,
            self.shape,
            looks_ahead=True,
            shares_dram=self.shares_dram,
        )

    def copy_ns(self, nbytes: int, kind: CopyKind = "h2d", *, idle_ns: int = 0) -> int:
        """Return how long one copy occupies its engine.

        A runtime that keeps an expert in several pieces makes several copies of one command: each
        pays the latency.

        Args:
            nbytes: Size of the copy.
            kind: h2d is the runtime's way of bringing experts to the GPU (pinned or pageable);
                nvme is from disk to RAM.
            idle_ns: How long the engine stood still before (h2d and peer only): at all, or, of
                h2d, for more than `pause_threshold_ns`.

        Raises:
            CapabilityError: If the machine has no such link.
        """
        idles = (idle_ns > 0) + (idle_ns > self.pause_threshold_ns)
        key = (nbytes, kind, idles)
        known = self._copy_memo.get(key)
        if known is None:
            known = self._copy_memo[key] = to_ns(self._copy(nbytes, kind, idles))
        return known

    def _copy(self, nbytes: int, kind: CopyKind, idles: int) -> Fraction:
        pieces = self.runtime.copying.pieces_per_expert if kind in ("h2d", "peer") else 1
        route = self._route(kind)
        time_ns = pieces * route.time_ns(Fraction(nbytes, pieces))
        if kind in ("h2d", "peer") and idles and self.runtime.copying.start is not None:
            time_ns += self.runtime.copying.start.value
        if kind == "h2d":
            time_ns += pieces * self.runtime.copying.overhead.value
            if idles > 1:
                time_ns += self.profile.link.first_copy.extra.value
        return time_ns

    def read_ns(self, nbytes: int) -> int:
        """Return how long one read from NVMe into RAM takes."""
        return self.copy_ns(nbytes, "nvme")

    def _route(self, kind: CopyKind) -> Route:
        link = self.profile.link
        if kind == "h2d":
            return link.h2d if self.runtime.copying.source == "pinned" else link.pageable
        route = {"d2h": link.d2h, "peer": link.peer, "nvme": self.profile.nvme}[kind]
        if route is None:
            where = "link.peer" if kind == "peer" else "nvme"
            raise CapabilityError(
                f"machine {self.profile.name!r} has no {kind} copies; add {where} to its profile"
            )
        return route

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's activations."""
        return self.shape.hidden * _ACTIVATION_BYTES

    def exchange_ns(self, src: int, dst: int, rows: int) -> int:
        """Return how long activations of so many rows travel from one GPU to another.

        Over the link that joins the two, else over PCIe: from one to the other where the driver
        allows it, else through pinned memory of the host, which the receiving kernel reads.
        """
        link, nbytes = self.profile.link, Fraction(rows * self.row_bytes)
        if link.peer is not None and (
            (src, dst) in link.peer.pairs or (dst, src) in link.peer.pairs
        ):
            return to_ns(link.peer.time_ns(nbytes))
        if link.peer_pcie is not None:
            return to_ns(link.peer_pcie.time_ns(nbytes))
        return to_ns(link.d2h.time_ns(nbytes) + link.h2d.time_ns(nbytes))

    def exchange_to_host_ns(self, src: int, dst: int, rows: int) -> int:
        """Return how much of `exchange_ns` is the way to the host's memory; 0 if it is not passed.

        Without rows that is the latency.
        """
        link = self.profile.link
        pairs = link.peer.pairs if link.peer is not None else ()
        if (src, dst) in pairs or (dst, src) in pairs or link.peer_pcie is not None:
            return 0
        return to_ns(link.d2h.time_ns(Fraction(rows * self.row_bytes)))

    def attention_ns(
        self,
        layer: int,
        tokens: int,
        context_tokens: int,
        requests: int = 1,
        pairs: int | None = None,
    ) -> int:
        """Return GPU time of all between the experts before MoE layer `layer` and its own router.

        Args:
            layer: Index of the MoE layer, not of the decoder layer.
            tokens: New tokens of the step, of all requests together.
            context_tokens: Positions attended to, new ones included, summed over the requests.
            requests: How many requests the tokens belong to; one per token in a decode step.
            pairs: (query, key) pairs, each new token with all up to itself; by default those of
                requests that are alike.
        """
        memo = self._attention_memos[layer]
        if pairs is None:
            # The i-th of a request's n new tokens sees its context but for the n - i after it.
            each = tokens / requests
            pairs = round(tokens * context_tokens / requests - tokens * (each - 1) / 2)
        key = (tokens, context_tokens, requests, pairs)
        known = memo.get(key)
        if known is None:
            if len(memo) >= _MEMO_ENTRIES:
                memo.clear()
            cost_layer = self.shape.layers[layer]
            fixed_ns = (
                self._dense_fixed_ns
                + cost_layer.qk_norms * self._qk_norm_ns
                + cost_layer.kv_repeats * self._kv_repeat_ns
            )
            repeated_bytes = context_tokens * cost_layer.repeated_kv_bytes_per_token
            known = memo[key] = fixed_ns + to_ns(
                self._dense(cost_layer, tokens) * self._dense_multiple
                + self._attention(cost_layer, tokens, context_tokens, requests, pairs)
                * self._attention_multiple
                + repeated_bytes * self._byte_ns * self._kv_repeat_multiple
            )
        return known

    def attention_ns_L(
        self, tokens: int, context_tokens: int, requests: int, pairs: int
    ) -> list[int]:
        """Return `attention_ns` of all layers."""
        ns_of = [
            self.attention_ns(self.class_L.index(number), tokens, context_tokens, requests, pairs)
            for number in range(max(self.class_L) + 1)
        ]
        return [ns_of[number] for number in self.class_L]

    def layer_ns(self, layer: int) -> int:
        """Return what `attention_ns` is for one decode token at a short context of 512."""
        return self.attention_ns(layer, 1, _SHORT_CONTEXT)

    def host_layer_ns(self, runs: int) -> int:
        """Return the host's time for a layer of one decode token and launches of an expert each."""
        return self.launch_layer_ns + self.sync_ns + self.poll_ns + runs * self.launch_run_ns(1)

    def _dense(self, layer: CostLayer, tokens: int) -> float:
        """Return the roofline floor of the dense weights, in ns."""
        return max(
            layer.dense_bytes * self._byte_ns,
            tokens * layer.dense_flops_per_token * self._weight_flop_ns,
        )

    def _attention(
        self, layer: CostLayer, tokens: int, context_tokens: int, requests: int, pairs: int
    ) -> float:
        """Return the roofline floor of what looks at the context, in ns."""
        floor_ns = self._roofline(
            context_tokens * layer.kv_bytes_per_token, pairs * layer.attention_flops_per_pair
        )
        window = self.shape.window_tokens
        if window is not None:
            floor_ns += self._roofline(
                min(context_tokens, window * requests) * layer.windowed_kv_bytes_per_token,
                min(pairs, tokens * window) * layer.windowed_flops_per_pair,
            )
        return floor_ns

    def _roofline(self, read_bytes: float, flops: float) -> float:
        return max(read_bytes * self._byte_ns, flops * self._flop_ns)

    def experts_gpu_ns(
        self, layer: int, tokens_per_expert: Sequence[int], *, part_ppm: int = WHOLE_PPM
    ) -> int:
        """Return GPU time of one run of experts of one layer.

        The sum over experts, each rounded, plus what the runtime adds per run: running the same
        experts in two runs costs exactly one such addition more.

        Args:
            layer: Index of the MoE layer.
            tokens_per_expert: For each expert of the run, how many tokens it serves.
            part_ppm: How much of each expert runs, where experts are split.
        """
        memo = self._expert_memos[layer]
        try:
            total_ns = sum(map(memo.__getitem__, tokens_per_expert))
        except KeyError:
            for tokens in {*tokens_per_expert} - memo.keys():
                memo[tokens] = self._expert(self.shape.layers[layer], tokens)
            total_ns = sum(map(memo.__getitem__, tokens_per_expert))
        if part_ppm != WHOLE_PPM:
            total_ns = to_ns(Fraction(total_ns * part_ppm, WHOLE_PPM))
        return total_ns + self._expert_fixed_ns

    def _expert(self, layer: CostLayer, tokens: int) -> int:
        if tokens == 0:
            return 0
        read_ns = layer.expert_bytes * self._byte_ns
        compute_ns = tokens * layer.expert_flops_per_token * self._weight_flop_ns
        return to_ns(
            max(read_ns * self._expert_multiple, compute_ns * self._expert_compute_multiple)
        )

    def expert_cpu_ns(self, layer: int, tokens: int, *, while_copying: bool = False) -> int:
        """Return the time from handing one expert to the CPU until the host knows its result.

        See `experts_cpu_ns`, which takes several experts in one round trip.
        """
        return self.experts_cpu_ns(layer, [tokens], while_copying=while_copying)

    def experts_cpu_ns(
        self, layer: int, tokens_per_expert: Sequence[int], *, while_copying: bool = False
    ) -> int:
        """Return the time from handing experts to the CPU until the host knows their results.

        All cores work on one expert after the other; activations travel there and back once.

        Args:
            layer: Index of the MoE layer.
            tokens_per_expert: For each expert of the run, how many tokens it serves.
            while_copying: Whether copies to the GPU take their share of the DRAM meanwhile.

        Raises:
            CapabilityError: If the runtime computes no experts on the CPU.
        """
        cpu = self.runtime.cpu_experts
        if cpu is None:
            raise CapabilityError(
                f"runtime {self.runtime.name!r} computes no experts on the CPU; choose a schedule "
                "that does not ask for it, or add cpu_experts to the runtime's profile"
            )
        products_ns = sum(
            self.product_cpu_ns(layer, tokens, while_copying=while_copying)
            for tokens in tokens_per_expert
        )
        travel_ns = 2 * self.activation_ns(sum(tokens_per_expert))
        return cpu.hand_over.value + travel_ns + products_ns + cpu.notice.value

    def cpu_return_ns(self, tokens: int) -> int:
        """Return the time from the last product of a CPU run until the host knows its result."""
        cpu = self.runtime.cpu_experts
        assert cpu is not None
        return self.activation_ns(tokens) + cpu.notice.value

    @property
    def dram_bytes_per_s(self) -> int:
        """What the host's DRAM gives all who use it at a time; see ``engines/dram.py``."""
        host, machine = self.profile.host, self.profile
        copying = max(point.bytes_per_s for point in self._route("h2d").bandwidth.value)
        of_all = [
            part.h2d.value
            for part in machine.link.shared.values()
            if len(part.gpus) == machine.gpus
        ]
        beside = host.expert_bandwidth_while_copying.value + max([copying, *of_all])
        return max(host.dram_bandwidth.value, beside)

    def activation_ns(self, tokens: int) -> int:
        """Return how long the activations of `tokens` tokens travel to the host, or back."""
        return self.copy_ns(tokens * self.row_bytes, "d2h")

    def product_cpu_ns(self, layer: int, tokens: int, *, while_copying: bool = False) -> int:
        """Return how long the products of one expert keep the CPU busy, without the round trip."""
        host, shape = self.profile.host, self.shape.layers[layer]
        rate = (
            host.expert_bandwidth_while_copying if while_copying else host.expert_bandwidth
        ).value
        flops = tokens * shape.expert_flops_per_token
        return to_ns(
            max(
                shape.expert_bytes * _SECOND_NS / rate, flops * _SECOND_NS / host.expert_flops.value
            )
        )

    def head_ns(self, tokens: int) -> int:
        """Return GPU time of what follows the last experts: norm, LM head, sampling.

        Args:
            tokens: How many tokens get logits; one per request.
        """
        floor_ns = self._roofline(self.shape.head_bytes, tokens * self.shape.head_flops_per_token)
        return to_ns(floor_ns * self._dense_multiple) + self._head_fixed_ns

    def launch_run_ns(self, experts: int, *, is_prompt: bool = False) -> int:
        """Return host time to launch one run of `experts` experts and record its end.

        Args:
            experts: How many.
            is_prompt: Whether the step has prompt tokens.
        """
        if is_prompt:
            return self._launch_prompt_run_ns + experts * self._launch_prompt_expert_ns
        return self._launch_run_ns + experts * self._launch_per_expert_ns

    def move_ns(self, nbytes: int) -> int:
        """Return GPU time to move bytes in its own memory: they are read and written."""
        return to_ns(2 * nbytes * self._byte_ns)

    def copy_issue_ns(self, copies: int) -> int:
        """Return host time to hand over `copies` copies and record the end of each."""
        return copies * self._copy_issue_ns

    def decision_ns(self, system: str, experts: int, commands: int) -> int:
        """Return how long one decision takes the processor that `decides_on` names.

        Args:
            system: Its row of the runtime's table; one without a row gets the default row.
            experts: Distinct experts of the demand.
            commands: Commands in the answer.
        """
        base_ns, per_expert_ns, per_command_ns = self._decisions.get(system, self._decision)
        return base_ns + experts * per_expert_ns + commands * per_command_ns

    @property
    def copies_slow_kernels(self) -> bool:
        """Whether it matters to any kernel that copies run as it starts."""
        return self.slow_down_ppm > 0 or self.run_while_copying_ns > 0

    def slowed_ns(self, kernel_ns: int, *, is_run: bool = False) -> int:
        """Return what a kernel of `kernel_ns` takes if copies run as it starts, half to even.

        Args:
            kernel_ns: What it takes alone.
            is_run: Whether it is a run of experts.
        """
        extra_ns, rest = divmod(kernel_ns * self.slow_down_ppm, WHOLE_PPM)
        above_half = 2 * rest - WHOLE_PPM
        slowed_ns = kernel_ns + extra_ns + (above_half > 0 or (above_half == 0 and extra_ns % 2))
        return slowed_ns + self.run_while_copying_ns if is_run else slowed_ns

    def evidence_for(self, busy_ns: Mapping[str, int]) -> Kind:
        """Return the weakest evidence behind a run of these busy times; see `Terms`."""
        return self._terms_of(busy_ns).evidence_for(busy_ns)

    def band_for(self, busy_ns: Mapping[str, int]) -> float:
        """Return the relative band of a run of these busy times; see `Terms`."""
        return self._terms_of(busy_ns).band_for(busy_ns)

    def _terms_of(self, busy_ns: Mapping[str, int]) -> Terms:
        """Return the terms that count in a run: those of tiers only where it used them."""
        if not (busy_ns.get("nvme") or busy_ns.get("peer")):
            return self.terms
        return Terms({**self.terms, **tier_terms(self.profile, _typical(self.shape))})


def _memos(class_L: Sequence[int]) -> list[dict[Any, int]]:
    """Return the memo of each layer; layers of one class share theirs."""
    memos: dict[int, dict[Any, int]] = {number: {} for number in class_L}
    return [memos[number] for number in class_L]


def _row(decision: Decision) -> tuple[int, int, int]:
    return decision.base.value, decision.per_expert.value, decision.per_command.value


def _typical(shape: CostShape) -> Typical:
    """Return one decode step's mean layer, which weighs the bands of the parts of a time."""
    layers = len(shape.layers)
    return Typical(
        expert_bytes=sum(layer.expert_bytes for layer in shape.layers) / layers,
        dense_bytes=sum(layer.dense_bytes for layer in shape.layers) / layers,
        head_bytes=shape.head_bytes,
        chosen=shape.top_k,
        least_band=_GUESSED_BYTES_BAND if shape.origin == "bytes" else 0.0,
    )
