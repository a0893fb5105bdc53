"""The light mixture as a predictor beside the trained ones; the mixture itself is the simulator's.

Policies use it online (``periodic:predictor=light``); here it is fitted, judged and kept in a file.
"""

from dataclasses import dataclass

from moesim.backends.predictors.uses import Floats, Prompts
from moesim.simulator.policies.mixture import Counters, Mixture, fit

# L MoE layers, E experts of a layer, P parts of the mixture.


@dataclass(slots=True)
class Light:
    """A mixture that has seen nothing but its weights; ask for one prompt after another.

    Attributes:
        weight_LP: Share of each part in each layer.
        counters: What it has seen.
    """

    weight_LP: Floats
    counters: Counters
    _at: int = 0

    def __call__(self, prompts: Prompts, at: int) -> Floats:
        """Tell the use of prompt ``at``, after learning the prompts before it that are new."""
        for before in range(self._at, at):
            self.counters.learn(
                prompts.use_RLE[before], prompts.task_R[before], _embedding(prompts, before)
            )
        self._at = at
        mixture = Mixture(self.weight_LP, self.counters)
        return mixture.tell(prompts.task_R[at], _embedding(prompts, at))


def fit_light(prompts: Prompts) -> Light:
    """Return a predictor with weights fitted on these prompts, which has seen none yet."""
    mixture = fit(prompts.use_RLE, prompts.task_R, prompts.embedding_RD)
    _, layers, experts = prompts.use_RLE.shape
    return Light(mixture.weight_LP, Counters(layers, experts))


def _embedding(prompts: Prompts, at: int) -> Floats | None:
    return None if prompts.embedding_RD is None else prompts.embedding_RD[at]
