"""What the benchmarks measure: a trace, a machine, a share of the experts in VRAM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moesim.simulator.ledger import Counts
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import Axis
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import ENGINES, Prepared, prepare
from moesim.simulator.workload.demands import Workload
from moesim.traces import RoutingTrace, load, synthetic

SEED = 0
SHARES = (50, 75, 90)
RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
PLAIN: Mapping[Axis, str] = {"cache": "lru", "prefetch": "none", "schedule": "resident_first"}
AHEAD: Mapping[Axis, str] = {**PLAIN, "prefetch": "oracle"}


@dataclass(frozen=True, slots=True)
class Case:
    """One trace at one share of experts in VRAM: LRU, without prefetch unless said otherwise."""

    name: str
    trace: RoutingTrace
    share: int
    model: str | None = None
    policies: Mapping[Axis, str] = field(default_factory=lambda: PLAIN)

    def prepare(self) -> Prepared:
        """Return the run with its names resolved."""
        return prepare(
            RunSpec(
                trace=self.trace,
                trace_name=self.name,
                hardware="h100-sxm",
                policies=self.policies,
                model=self.model,
                memory=MemorySpec(slots=f"{self.share}%"),
                seed=SEED,
            )
        )


def cases(tokens: int) -> list[Case]:
    """Return a synthetic 48x128 top-8 trace at three shares, then what is recorded beside us."""
    trace = synthetic.sticky(
        seed=SEED,
        reuse=0.3,
        layers=48,
        experts=128,
        top_k=8,
        requests=1,
        prompt_tokens=0,
        decode_tokens=tokens,
    )
    name = "synthetic 48x128 top-8"
    found = [Case(name, trace, share, "qwen3-30b-a3b") for share in SHARES]
    found += [Case(f"{name}, ahead", trace, share, "qwen3-30b-a3b", AHEAD) for share in SHARES]
    for folder, requests in (("gpt-oss-20b", 4), ("bigmoe-qwen", 1), ("deepseek-v2-lite-esft", 8)):
        if (RECORDED / folder).is_dir():
            recorded = load(RECORDED / folder).head(requests=requests)
            found += [Case(folder, recorded, share) for share in SHARES]
    return found


def run_engine(prepared: Prepared, name: str) -> Counts:
    """Replay on an engine, and nothing else: no bounds, no row."""
    sizes_L, experts = prepared.sizes_L, prepared.spec.trace.experts
    controller = prepared.controller()
    engine = ENGINES[name](
        controller,
        Workload(prepared.spec.trace),
        prepared.costs,
        expert_bytes=lambda expert, _: sizes_L[expert // experts],
        budget_bytes=prepared.memory.expert_bytes,
    )
    engine.run()
    controller.close()
    return controller.counts
