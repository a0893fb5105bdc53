"""A new profile from a similar one: valid at once, honest about what nobody has measured.

The draft says nothing of its new machine that is not an estimate: what was given on the command
line has a band of 10 %, what is taken over from the other machine one of at least 25 %.
"""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from moesim.hardware_profiles.catalogue import FOLDER, load
from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.files import find, read_tree, validated
from moesim.hardware_profiles.schema import HardwareProfile
from moesim.hardware_profiles.units import format_ppm, parse_ppm

GIVEN_BAND = "10%"
TAKEN_OVER_BAND_PPM = 250_000
_GIVEN = "given"
_GIVEN_EVIDENCE = {
    "evidence": "estimated",
    "band": GIVEN_BAND,
    "source": "given to moesim profile new; replace by a datasheet or a measurement",
}
_LIKE = "like-"

# What can be given, by the name of its option.
OPTIONS = {
    "title": "title",
    "gpus": "gpus",
    "gpu": "gpu.name",
    "vram": "gpu.vram",
    "vram_usable": "gpu.vram_usable",
    "memory_bandwidth": "gpu.memory_bandwidth",
    "bf16": "gpu.bf16",
    "fp8": "gpu.fp8",
    "int8": "gpu.int8",
    "pcie": "link.pcie",
    "h2d": "link.h2d.bandwidth",
    "h2d_latency": "link.h2d.latency",
    "d2h": "link.d2h.bandwidth",
    "pageable": "link.pageable.bandwidth",
    "cpu": "host.cpu",
    "cores": "host.cores",
    "ram": "host.ram",
    "dram_bandwidth": "host.dram_bandwidth",
    "expert_bandwidth": "host.expert_bandwidth",
    "expert_bandwidth_while_copying": "host.expert_bandwidth_while_copying",
    "expert_flops": "host.expert_flops",
    "nvme": "nvme.bandwidth",
}
_PLAIN = {"title", "gpus", "gpu.name", "host.cpu", "host.cores"}


def new(name: str, *, like: str | Path, **given: str) -> str:
    """Return the YAML of a machine that is like another but for what is given.

    Args:
        name: Of the new machine, and of its file.
        like: Name or path of the profile to start from.
        **given: Values as one writes them in a profile, by option (a key of `OPTIONS`).

    Raises:
        ProfileError: If an option or a value is not one.

    >>> print(new("mine", like="rtx4090", vram="32GiB").splitlines()[4])
    title: Like rtx4090, but vram 32GiB
    """
    base = load(like).name
    tree = read_tree(find(like, FOLDER, "hardware profile"))
    for option in given:
        if option not in OPTIONS:
            close = get_close_matches(option, OPTIONS, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ProfileError(f"no option {option!r}; {hint}there are {', '.join(OPTIONS)}")
    head: dict[str, Any] = {"schema": "1", "name": name, "title": _title(base, given)}
    sources = tree.get("sources", {})
    draft = head | {
        key: _taken_over(node, list(sources), base)
        for key, node in tree.items()
        if key not in head and key not in ("sources", "fingerprint")
    }
    draft["sources"] = {
        f"{_LIKE}{source}": _weakened(evidence, base) for source, evidence in sources.items()
    }
    if any(OPTIONS[option] not in _PLAIN for option in given):
        draft["sources"][_GIVEN] = _GIVEN_EVIDENCE
    for option, value in given.items():
        _put(draft, OPTIONS[option], value, missing=f"{option}: {base} has no")
    validated(draft, HardwareProfile, f"{name}.yaml")
    header = f"# A draft by `moesim profile new {name} --like {base}`: check each figure.\n\n"
    return header + to_yaml(draft)


def write_new(name: str, *, like: str | Path, folder: str | Path = ".", **given: str) -> Path:
    """Write what `new` returns to ``NAME.yaml`` and return its path.

    The file appears whole or not at all, and never in place of another.

    Raises:
        ProfileError: If the file exists or cannot be written, or as `new` does.
    """
    text = new(name, like=like, **given)
    path = Path(folder) / f"{name}.yaml"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        path.hardlink_to(part)
    except FileExistsError as error:
        raise ProfileError(f"{path}: exists already; choose another name or remove it") from error
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _title(base: str, given: Mapping[str, str]) -> str:
    if "title" in given:
        return given["title"]
    changes = ", ".join(f"{option.replace('_', ' ')} {value}" for option, value in given.items())
    return f"Like {base}, but {changes}" if changes else f"Like {base}"


def _taken_over(node: Any, sources: list[str], base: str) -> Any:  # noqa: ANN401  # any YAML
    """Return a part of another machine's profile with its evidence as what it is for this one."""
    if isinstance(node, dict) and "evidence" in node:
        return {"value": node["value"]} | _weakened(node, base)
    if isinstance(node, dict):
        return {key: _taken_over(child, sources, base) for key, child in node.items()}
    if isinstance(node, list) and node and node[-1] in sources:
        return [*node[:-1], f"{_LIKE}{node[-1]}"]
    return node


def _weakened(evidence: Mapping[str, Any], base: str) -> dict[str, str]:
    """Return evidence for another machine as an estimate for this one."""
    band_ppm = max(parse_ppm(evidence.get("band", "0%")), TAKEN_OVER_BAND_PPM)
    return {
        "evidence": "estimated",
        "band": format_ppm(band_ppm),
        "source": f"taken over from {base}: {evidence['source']}",
    }


def _put(draft: dict[str, Any], key: str, value: str, *, missing: str) -> None:
    """Set one key, as a figure with the evidence of what was given unless it is a plain one."""
    *parents, last = key.split(".")
    node = draft
    for parent in parents:
        if parent not in node:
            raise ProfileError(f"{missing} {parent}; take another --like")
        node = node[parent]
    node[last] = value if key in _PLAIN else [value, _GIVEN]


class _Dumper(yaml.SafeDumper):
    """Block style, but figures on one line, as in ``vram: [32GiB, given]``; no quotes on digits."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # PyYAML's own class attribute


def _on_one_line(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


_Dumper.add_representer(list, _on_one_line)


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Return YAML, the sources first and an empty line between sections."""
    head = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    sections = sorted((key for key in tree if key not in head), key=lambda key: key != "sources")
    return "\n".join(
        yaml.dump(part, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
        for part in (head, *({key: tree[key]} for key in sections))
    )
