"""A trained predictor as one safetensors file: networks, light mixture, and where they are from.

Equal training gives equal bytes: everything that is not an array stands in one JSON text under
``moesim``, with sorted keys, and no time of day or duration is in it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moesim.backends.predictors.light import Light
from moesim.backends.predictors.sequence import ExpertSequence, Size, Variant
from moesim.hardware_profiles.writing import replacing
from moesim.simulator.errors import InputError
from moesim.simulator.policies.expert_network import DOCUMENT, SCHEMA_VERSION
from moesim.simulator.policies.mixture import Counters

# L MoE layers, P parts of the mixture.
LIGHT = "light.weight_LP"


@dataclass(frozen=True, slots=True)
class Predictors:
    """What one training gave.

    Attributes:
        networks: The sequence models, by variant.
        light: The mixture, which has seen nothing yet.
        provenance: Hash of the trace, order, seed, prompts, and accuracies on those held out.
    """

    networks: Mapping[Variant, ExpertSequence]
    light: Light
    provenance: Mapping[str, Any]


def write_predictors(found: Predictors, target: Path) -> None:
    """Write the file beside its target and put it in place."""
    import torch  # noqa: PLC0415  only here is an array asked of it

    arrays: dict[str, NDArray[Any]] = {LIGHT: found.light.weight_LP}
    for variant, network in found.networks.items():
        for name, tensor in sorted(network.state_dict().items()):
            arrays[f"{variant}.{name}"] = tensor.to(torch.float32).numpy()
    document = {
        "schema_version": SCHEMA_VERSION,
        "sizes": {variant: network.size.as_dict() for variant, network in found.networks.items()},
        "shape": [found.light.counters.layers, found.light.counters.experts],
        "provenance": dict(found.provenance),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    ordered = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
    with replacing(target) as draft:
        draft.write_bytes(save(ordered, metadata={DOCUMENT: text}))


def read_predictors(path: Path) -> Predictors:
    """Read what `write_predictors` wrote.

    Raises:
        InputError: The file is missing, damaged, or something else.
    """
    import torch  # noqa: PLC0415  as above

    try:
        with safe_open(path, framework="np") as file:
            document = json.loads((file.metadata() or {}).get(DOCUMENT, "{}"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a predictor: {error}") from error
    if document.get("schema_version") != SCHEMA_VERSION or LIGHT not in arrays:
        raise InputError(f"{path}: not a predictor; make one with moesim train-predictor")
    networks: dict[Variant, ExpertSequence] = {}
    for variant, figures in document["sizes"].items():
        network = ExpertSequence(Size(**figures))
        prefix = f"{variant}."
        network.load_state_dict(
            {
                name.removeprefix(prefix): torch.from_numpy(array)
                for name, array in arrays.items()
                if name.startswith(prefix)
            }
        )
        networks[variant] = network.eval()
    light = Light(arrays[LIGHT], Counters(*document["shape"]))
    return Predictors(networks, light, document["provenance"])
