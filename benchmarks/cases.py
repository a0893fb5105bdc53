"""What the benchmarks measure: a trace, a machine, a share of the experts in VRAM."""

from dataclasses import dataclass
from pathlib import Path

from moesim.simulator.demands import Workload
from moesim.simulator.engine_simpy import SimpyEngine
from moesim.simulator.ledger import Counts
from moesim.simulator.memory import MemorySpec
from moesim.simulator.runs import Prepared, RunSpec, prepare
from moesim.traces import RoutingTrace, load, synthetic

SEED = 0
SHARES = (50, 75, 90)
RECORDED = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces"
PLAIN = {"cache": "lru", "prefetch": "none", "schedule": "resident_first"}


@dataclass(frozen=True, slots=True)
class Case:
    """One trace at one share of experts in VRAM, LRU without prefetch."""

    name: str
    trace: RoutingTrace
    share: int
    model: str | None = None

    def prepare(self) -> Prepared:
        """Return the run with its names resolved."""
        return prepare(
            RunSpec(
                trace=self.trace,
                trace_name=self.name,
                hardware="h100-sxm",
                policies=PLAIN,
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
    for folder, requests in (("gpt-oss-20b", 4), ("bigmoe-qwen", 1), ("deepseek-v2-lite-esft", 8)):
        if (RECORDED / folder).is_dir():
            recorded = load(RECORDED / folder).head(requests=requests)
            found += [Case(folder, recorded, share) for share in SHARES]
    return found


def run_simpy(prepared: Prepared) -> Counts:
    """Replay on the SimPy engine, and nothing else: no bounds, no row."""
    sizes_L, experts = prepared.sizes_L, prepared.spec.trace.experts
    controller = prepared.controller()
    engine = SimpyEngine(
        controller,
        Workload(prepared.spec.trace),
        prepared.costs,
        expert_bytes=lambda expert, _: sizes_L[expert // experts],
        budget_bytes=prepared.memory.expert_bytes,
    )
    engine.run()
    controller.close()
    return controller.counts
