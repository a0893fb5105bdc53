"""A trained predictor of expert use, read from its file and asked with numpy alone.

``moesim train-predictor`` trains small XLNets with torch (``backends/predictors/sequence.py`` says
what they read and answer) and writes their weights. Here the same answers come from a few matrix
products, so that a replay without torch and an execution ask one and the same function. XLNet:
arXiv 1906.08237, as transformers 5 computes it with a permutation mask and no memory; eMoE (arXiv
2503.06823) section 3.2.2 asks it for the experts of the next prompt.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from moesim.simulator.choices import tokens_of
from moesim.simulator.errors import InputError

# H prompts of history, L MoE layers, E experts of a layer, D width, S tokens that the network
# reads, N heads, P positions (twice S), K chosen.
Floats = NDArray[np.float32]
Variant = Literal["all_layers", "by_layer"]

DOCUMENT = "moesim"
SCHEMA_VERSION = 2
"""Of the file; 1 had another activation between the feed-forward layers."""
NORM_FLOOR = 1e-12


class ExpertNetwork:
    """One trained network.

    Args:
        arrays: Its weights, named as torch names them.
        size: What it was built from: ``layers``, ``experts``, ``variant``, ``history``, ``width``,
            ``blocks``, ``heads``.

    Attributes:
        history: Prompts that it reads, H.
        shape: Layers and experts of the model that it knows.
    """

    def __init__(self, arrays: Mapping[str, Floats], size: Mapping[str, Any]) -> None:
        self.history = int(size["history"])
        self.shape = (int(size["layers"]), int(size["experts"]))
        self._by_layer = size["variant"] == "by_layer"
        self._weights = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
        self._blocks = int(size["blocks"])
        tokens, width = (self.history + 1) * self.shape[0], int(size["width"])
        self._is_hidden_SS = self._hidden(tokens)
        signal_PD = _positions(tokens, width)
        self._position_key_NPD = [
            np.einsum("ph,hnd->npd", signal_PD, self._of(block, "rel_attn.r"))
            for block in range(self._blocks)
        ]

    def tell(self, history_HLE: Floats, top_k: int) -> Floats:
        """Return shares of use of the next prompt, [L, E]; by layer it reads its own answers.

        Args:
            history_HLE: Sets of the latest prompts as shares of 1/k, oldest first; zeros where
                there was none.
            top_k: Experts of the sets.
        """
        if not self._by_layer:
            return self._forward(history_HLE, None)
        current_LE = np.zeros(self.shape, np.float32)
        told_LE = np.zeros(self.shape, np.float32)
        for layer in range(self.shape[0]):
            told_LE[layer] = self._forward(history_HLE, current_LE)[layer]
            current_LE[layer] = as_sets(told_LE[layer], top_k)
        return told_LE

    def _forward(self, history_HLE: Floats, current_LE: Floats | None) -> Floats:
        weights = self._weights
        expert_LED, layer_LD, age_HD = weights["expert"], weights["layer"], weights["age"]
        read_HLD = (history_HLE.transpose(1, 0, 2) @ expert_LED).transpose(1, 0, 2)
        read_HLD = read_HLD + layer_LD + age_HD[1:, None]
        asked_LD = layer_LD + age_HD[0]
        if current_LE is not None:
            first_D = history_HLE[-1, 0] @ expert_LED[0]
            before_LD = (current_LE[:-1, None] @ expert_LED[:-1])[:, 0]
            asked_LD = asked_LD + np.concatenate([first_D[None], before_LD])
        hidden_SD = np.concatenate([read_HLD.reshape(-1, asked_LD.shape[1]), asked_LD])
        for block in range(self._blocks):
            hidden_SD = self._feed_forward(block, self._attend(block, hidden_SD))
        asked_L1D = hidden_SD[-self.shape[0] :, None]
        scores_LE = (asked_L1D @ expert_LED.transpose(0, 2, 1))[:, 0] + weights["bias"]
        return _softmax(scores_LE)

    def _attend(self, block: int, hidden_SD: Floats) -> Floats:
        query, key, value = (
            np.einsum("sh,hnd->nsd", hidden_SD, self._of(block, f"rel_attn.{name}"), optimize=True)
            for name in "qkv"
        )
        by_content = query + self._of(block, "rel_attn.r_w_bias")[:, None]
        by_position = query + self._of(block, "rel_attn.r_r_bias")[:, None]
        shifted = _shift(by_position @ self._position_key_NPD[block].transpose(0, 2, 1))
        scores = (by_content @ key.transpose(0, 2, 1) + shifted) / np.sqrt(query.shape[2])
        scores = np.where(self._is_hidden_SS, np.float32(-1e30), scores)
        mixed = np.einsum(
            "nsd,hnd->sh", _softmax(scores) @ value, self._of(block, "rel_attn.o"), optimize=True
        )
        return self._normed(block, "rel_attn", mixed + hidden_SD)

    def _feed_forward(self, block: int, hidden_SD: Floats) -> Floats:
        inner = hidden_SD @ self._of(block, "ff.layer_1.weight").T
        inner = _gelu(inner + self._of(block, "ff.layer_1.bias"))
        outer = inner @ self._of(block, "ff.layer_2.weight").T + self._of(block, "ff.layer_2.bias")
        return self._normed(block, "ff", outer + hidden_SD)

    def _normed(self, block: int, part: str, values_SD: Floats) -> Floats:
        centred_SD = values_SD - values_SD.mean(axis=1, keepdims=True)
        spread_S1 = np.sqrt((centred_SD**2).mean(axis=1, keepdims=True) + NORM_FLOOR)
        gain_D = self._of(block, f"{part}.layer_norm.weight")
        normed_SD: Floats = centred_SD / spread_S1 * gain_D
        return normed_SD + self._of(block, f"{part}.layer_norm.bias")

    def _of(self, block: int, name: str) -> Floats:
        return self._weights[f"body.layer.{block}.{name}"]

    def _hidden(self, tokens: int) -> NDArray[np.bool_]:
        """Return where a token may not look: history at the answer, a layer at later ones."""
        begin = tokens - self.shape[0]
        is_hidden_SS = np.zeros((tokens, tokens), bool)
        is_hidden_SS[:begin, begin:] = True
        if self._by_layer:
            is_hidden_SS[begin:, begin:] = np.triu(np.ones_like(is_hidden_SS[begin:, begin:]), 1)
        return is_hidden_SS


class OnlineNetwork:
    """A network that is told of every choice as it is served.

    Args:
        path: File of ``moesim train-predictor``.
        variant: Which of its networks.
        shape: Layers and experts of the run's model.
        top_k: Experts that a token uses in a layer.

    Raises:
        InputError: The file holds no such network, or one for another model.
    """

    def __init__(self, path: Path, variant: Variant, shape: tuple[int, int], top_k: int) -> None:
        self._network = read_network(path, variant)
        if self._network.shape != shape:
            layers, experts = self._network.shape
            raise InputError(
                f"{path}: trained for {layers} layers x {experts} experts, the run has "
                f"{shape[0]} x {shape[1]}; train one on a trace of this model"
            )
        self._top_k = top_k
        self._before: deque[Floats] = deque(maxlen=self._network.history)
        self._present = np.zeros(shape[0] * shape[1], np.int64)

    def count(self, experts: Sequence[int]) -> None:
        """Count the choices of one event, each token's."""
        for expert, tokens in tokens_of(experts).items():
            self._present[expert] += tokens

    def learn(self) -> None:
        """Take note that a prompt begins, and of what the one before it chose."""
        if self._present.any():
            self._before.append(as_sets(self._present.reshape(self._network.shape), self._top_k))
        self._present = np.zeros_like(self._present)

    def history(self) -> Floats:
        """Return what the network is asked with: the sets of the latest prompts, oldest first."""
        history_HLE = np.zeros((self._network.history, *self._network.shape), np.float32)
        for age, sets_LE in enumerate(reversed(self._before), start=1):
            history_HLE[-age] = sets_LE
        return history_HLE

    def tell(self, history_HLE: Floats) -> Floats:
        """Return the use that the network expects of the next prompt."""
        return self._network.tell(history_HLE, self._top_k)


def read_network(path: Path, variant: Variant) -> ExpertNetwork:
    """Read one network of a file that ``moesim train-predictor`` wrote.

    Raises:
        InputError: The file is missing, damaged, something else, or of an older version.
    """
    try:
        with safe_open(path, framework="np") as file:
            document = json.loads((file.metadata() or {}).get(DOCUMENT, "{}"))
            prefix = f"{variant}."
            arrays = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118  no dict
                if name.startswith(prefix)
            }
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a predictor: {error}") from error
    if document.get("schema_version") != SCHEMA_VERSION or variant not in document["sizes"]:
        raise InputError(
            f"{path}: no {variant} predictor of version {SCHEMA_VERSION}; make one with moesim "
            "train-predictor TRACE -o FILE"
        )
    return ExpertNetwork(arrays, document["sizes"][variant])


def as_sets(use_LE: NDArray[Any], top_k: int) -> Floats:
    """Return 1/k for the k experts of largest use along the last axis, 0 for the others."""
    order = np.argsort(-use_LE, axis=-1, kind="stable")[..., :top_k]
    sets_LE = np.zeros(use_LE.shape, np.float32)
    np.put_along_axis(sets_LE, order, np.float32(1 / top_k), axis=-1)
    return sets_LE


def _positions(tokens: int, width: int) -> Floats:
    """Return the sines and cosines of distances from ``tokens`` down to ``1 - tokens``."""
    distance_P = np.arange(tokens, -tokens, -1.0)
    rate_D = 10_000.0 ** (-np.arange(0, width, 2.0) / width)
    angle_PD = distance_P[:, None] * rate_D
    return np.concatenate([np.sin(angle_PD), np.cos(angle_PD)], axis=1).astype(np.float32)


def _shift(scores_NSP: Floats) -> Floats:
    """Return scores by key in place of scores by distance."""
    heads, tokens, positions = scores_NSP.shape
    turned = scores_NSP.reshape(heads, positions, tokens)[:, 1:]
    return turned.reshape(heads, tokens, positions - 1)[:, :, :tokens]


def _softmax(scores: Floats) -> Floats:
    odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: Floats = odds / odds.sum(axis=-1, keepdims=True)
    return shares


def _gelu(values: Floats) -> Floats:
    """Return the GELU by its hyperbolic tangent, which transformers calls ``gelu_new``."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values**3)
    half: Floats = np.float32(0.5) * values * (1 + np.tanh(inner))
    return half
