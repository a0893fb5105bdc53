"""Our CUDA driver with graphs under measurement: what is calibrated is what runs."""

from collections.abc import Callable
from functools import partial
from typing import Any

from moesim.backends.calibration import works
from moesim.backends.calibration.bench import Bench
from moesim.backends.calibration.driver_host import DriverHost
from moesim.backends.calibration.graph_figures import WORDS, GraphFigures
from moesim.backends.calibration.graph_points import (
    ATTENTION,
    CONTEXTS,
    FEW_LAYERS,
    FEWEST_RUN,
    FITTED,
    HEAD_CONTEXT,
    HELD_CONTEXTS,
    HELD_PROMPTS,
    HELD_RUNS,
    LARGE,
    MANY_LAYERS,
    MODELS,
    PROMPTS,
    dense_name,
    head_name,
    prompt_name,
    run_name,
)
from moesim.backends.calibration.pieces import LOOKING, Pieces
from moesim.backends.calibration.rates import PRODUCT, READ, alone, beside, gpu_section, slow_down
from moesim.backends.calibration.sampling import Probe
from moesim.backends.calibration.sheet import Sheet
from moesim.backends.calibration.token_fit import fit_tokens
from moesim.backends.calibration.whole_tokens import Lengths, Session
from moesim.backends.drivers.cuda.graph_driver import GraphDriver

SESSION_EVERY = 6


class GraphSoftware:
    """The runtime called ``moesim-graph`` on one GPU; see `Software`.

    Args:
        bench: The GPU.
    """

    words = WORDS

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        scale = bench.scale
        contexts = (*CONTEXTS, *HELD_CONTEXTS)
        self._models = [
            Pieces(name, layers, contexts, bench.place) for name, layers in MODELS.items()
        ]
        self._figures = GraphFigures(self._models, scale)
        make = works.Weights(bench.place, bench.dtype, scale.cold_bytes)
        self._read = bench.captured([works.read_work(scale.read_bytes, make)])
        self._product = bench.captured([works.product_work(scale.product_width, make)])
        self._host = DriverHost(FITTED, bench.place)
        lengths = Lengths()
        self._few, self._many, *self._others = (
            Session(name, layers, bench.place, GraphDriver, lengths)
            for name, layers in (
                (FITTED, FEW_LAYERS),
                (FITTED, MANY_LAYERS),
                ("qwen3-30b-a3b", FEW_LAYERS),
                ("mixtral-8x7b", MODELS["mixtral-8x7b"]),
            )
        )
        self.kernel: works.Work = partial(self._models[0].run, self._models[0].top_k)

    def probes(self) -> list[Probe]:
        """Return the probes of rates, pieces, runs, host calls and whole tokens."""
        found = [
            Probe(READ, lambda: self._bench.kernel_ns(self._read)),
            Probe(PRODUCT, lambda: self._bench.kernel_ns(self._product)),
        ]
        for model in self._models:
            for context in (LOOKING, *CONTEXTS, *HELD_CONTEXTS):
                sample = partial(self._attention_ns, model, context)
                found.append(Probe(dense_name(model.name, context), sample))
            for tokens in (*PROMPTS[model.name], *HELD_PROMPTS[model.name]):
                sample = partial(self._prompt_ns, model, tokens)
                found.append(Probe(prompt_name(model.name, tokens), sample, every=2))
            for experts in (*FEWEST_RUN[model.name], *HELD_RUNS[model.name]):
                launch = partial(model.run, experts)
                found.append(Probe(run_name(model.name, experts), partial(self._each_ns, launch)))
            launch = partial(model.speak, HEAD_CONTEXT)
            found.append(Probe(head_name(model.name), partial(self._each_ns, launch)))
        for name, measure in self._beside():
            found.append(Probe(beside(name), partial(self._beside_ns, measure)))
            found.append(Probe(alone(name), measure))
        found += self._host.probes()
        for session in (self._few, self._many, *self._others):
            found += session.probes(SESSION_EVERY)
        found += self._many.decision_probes(SESSION_EVERY)
        return found

    def cold_ns(self, sheet: Sheet) -> float:
        """Return how much longer a decision takes in a run than among others: caches are cold.

        Asked of the many layers of the fitted model, all of whose experts are resident.
        """
        running, in_a_row = (sheet.median(name) for name in self._many.decision_names())
        return max(0.0, running - in_a_row)

    def _each_ns(self, launch: Any) -> float:  # noqa: ANN401  launches, and returns how often
        """Return the device's time of each of some launches in a row."""
        times = 0

        def work() -> None:
            nonlocal times
            times = launch()

        return self._bench.kernel_ns(work) / times

    def _attention_ns(self, model: Pieces, context: int) -> float:
        model.forget(context)
        return self._each_ns(partial(model.attend, context))

    def _prompt_ns(self, model: Pieces, tokens: int) -> float:
        model.open_prompt(tokens)
        return self._each_ns(partial(model.run_prompt, tokens))

    def _beside_ns(self, sample: Callable[[], float]) -> float:
        with self._bench.copies_beside():
            return sample()

    def _beside(self) -> list[tuple[str, Callable[[], float]]]:
        """Return what is timed beside copies: pieces and runs of a small and a large model."""
        found: list[tuple[str, Callable[[], float]]] = []
        for model in (self._models[0], self._models[-1]):
            context, launch = CONTEXTS[0], partial(model.run, model.top_k)
            attention = partial(self._attention_ns, model, context)
            found.append((dense_name(model.name, context), attention))
            found.append((run_name(model.name, model.top_k), partial(self._each_ns, launch)))
        return found

    def gpu(self, sheet: Sheet) -> dict[str, Any]:
        """Return the rates of the profile's section ``gpu``.

        Attention says what copies beside a kernel cost it. A run fetches its offsets over the link
        as well, which takes as much longer whatever its size: a figure of the runtime's.
        """
        readers = [READ, *(run_name(LARGE, experts) for experts in FEWEST_RUN[LARGE])]
        return gpu_section(
            self._bench,
            sheet,
            self._figures.rates(sheet),
            readers,
            self.words,
            self._attention_beside(),
        )

    def sections(self, sheet: Sheet) -> dict[str, Any]:
        """Return the runtime's sections on host and kernels, but for what `complete` fills in."""
        return {
            "launch": self._host.launch(sheet),
            "wait": {"poll": self._host.poll(sheet)},
            "copying": self._host.copying(sheet),
            "kernels": self._figures.dense(sheet)
            | self._figures.experts(sheet)
            | self._host.waiting(
                sheet, run_name(FITTED, 1), slow_down(sheet, self._attention_beside())
            ),
        }

    def _attention_beside(self) -> list[str]:
        return [name for name, _ in self._beside() if name.startswith(ATTENTION)]

    def complete(self, machine: dict[str, Any], runtime: dict[str, Any], sheet: Sheet) -> None:
        """Fill in what only whole tokens tell; tokens of other models check all of it."""
        fit_tokens(machine, runtime, sheet, (self._few, self._many), self._others)

    def close(self) -> None:
        """Release models, sessions and driver."""
        for model in self._models:
            model.close()
        for session in (self._few, self._many, *self._others):
            session.close()
        self._host.close()
