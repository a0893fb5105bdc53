"""Drive moesim's controller from a loop of your own, and see that it decides as a replay does.

The model here is a few lines of numpy that know nothing of moesim; yours may be any engine. The
loop has three duties: report each router's choice, obey the commands, report copies that ended.
"""

import numpy as np

from moesim.backends.controllers import Deciding
from moesim.simulator import messages as say
from moesim.simulator.controller import Controller
from moesim.simulator.engines.counts import count
from moesim.simulator.terms import Phase
from moesim.simulator.workload.demands import Workload
from moesim.traces import TraceHeader
from moesim.traces.assemble import RequestRows, assemble

# T tokens, L layers, K chosen.
LAYERS, EXPERTS, TOP_K, WIDTH, TOKENS = 4, 16, 2, 32, 200
SIZE = WIDTH * WIDTH * 8
BUDGET = 24 * SIZE
LFU = Deciding(
    policies={"cache": "lfu", "prefetch": "none", "schedule": "resident_first"},
    budget_bytes=BUDGET,
)


def controller() -> Controller:
    sizes_L = (SIZE,) * LAYERS
    return LFU.controller(experts=EXPERTS, top_k=TOP_K, sizes_L=sizes_L, keep_log=True)


def generate(mind: Controller) -> np.ndarray:
    """Run the model token by token; return the routes, [T, L, K]."""
    rng = np.random.default_rng(0)
    routers = rng.normal(size=(LAYERS, EXPERTS, WIDTH))
    host = rng.normal(size=(LAYERS * EXPERTS, WIDTH, WIDTH)) / WIDTH**0.5
    vram = np.zeros((BUDGET // SIZE, WIDTH, WIDTH))
    state, slot_of, ended, routes = rng.normal(size=WIDTH), {}, [], []
    mind.handle([say.RunBegan(mind.initial(), BUDGET), say.RequestArrived(0, 1)], 0)
    for step in range(TOKENS):
        phase = Phase.DECODE if step else Phase.PREFILL
        mind.handle([say.StepBegan(step, (0,), (phase,), {})], 0)
        for layer in range(LAYERS):
            chosen = np.argsort(-(routers[layer] @ state))[:TOP_K]
            experts = (layer * EXPERTS + chosen).tolist()
            commands = mind.handle([*ended, say.LayerRouted(step, layer, experts)], 0)
            products, ended = {}, []
            for command in commands:
                if isinstance(command, say.Copy):
                    slot_of[command.expert] = command.dst.offset_bytes // SIZE
                    vram[slot_of[command.expert]] = host[command.expert]
                    ended.append(say.CopyEnded(command.n))
                elif isinstance(command, say.Run):
                    products |= {e: vram[slot_of[e]] @ state for e in command.experts}
            state = np.tanh(state + sum(products[e] for e in experts))
            routes.append(chosen)
        over = [say.RequestEnded(0)] if step == TOKENS - 1 else []
        mind.handle([*ended, say.StepEnded(step, (1,)), *over], 0)
        ended = []
    return np.array(routes).reshape(TOKENS, LAYERS, TOP_K)


def main() -> None:
    mine, replayed = controller(), controller()
    routes_TLK = generate(mine)
    header = TraceHeader(
        model="numpy", layer_ids=range(LAYERS), experts=EXPERTS, top_k=TOP_K, evidence="recorded"
    )
    rows = RequestRows(expert_TLK=routes_TLK, is_prefill_T=np.arange(TOKENS) < 1, prompt_tokens=1)
    count(replayed, Workload(assemble("own loop", header, [rows])), budget_bytes=BUDGET)
    decisions = [[c for _, _, answer in each.log for c in answer] for each in (mine, replayed)]
    assert decisions[0] == decisions[1]
    print(f"{len(decisions[0])} decisions, all equal; {mine.counts.misses} misses in both")


if __name__ == "__main__":
    main()
