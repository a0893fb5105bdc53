"""The published JSON Schema describes the files that ship."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesim import hardware_profiles
from moesim.hardware_profiles import json_schema, names
from moesim.hardware_profiles.files import read_tree

FOLDER = Path(hardware_profiles.__file__).parent


def keys_beyond(tree: object, node: dict[str, Any], defs: dict[str, Any], key: str) -> list[str]:
    """Return the keys of a file that the schema does not know."""
    if "$ref" in node:
        node = defs[node["$ref"].rpartition("/")[2]]
    options = node.get("anyOf", [node])
    for option in options:
        target = defs[option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        if "anyOf" in target:
            return keys_beyond(tree, target, defs, key)
        if isinstance(tree, dict) and "properties" in target:
            node = target
    if not isinstance(tree, dict) or "properties" not in node:
        return []
    unknown = []
    for name, child in tree.items():
        if name not in node["properties"]:
            unknown.append(f"{key}.{name}")
        else:
            unknown += keys_beyond(child, node["properties"][name], defs, f"{key}.{name}")
    return unknown


@pytest.mark.parametrize("name", names())
def test_the_schema_knows_every_key_of_a_shipped_file(name: str) -> None:
    """An editor that follows the schema marks none of our files."""
    schema = json_schema()
    assert keys_beyond(read_tree(FOLDER / f"{name}.yaml"), schema, schema["$defs"], name) == []


def test_the_schema_is_json_and_offers_both_forms_of_a_figure() -> None:
    """A figure is a pair or written in full; no other keys are allowed."""
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert {"schema", "name", "title", "gpu", "link", "host"} == set(schema["required"])
    vram = schema["$defs"]["Gpu"]["properties"]["vram"]
    forms = schema["$defs"][vram["$ref"].rpartition("/")[2]]["anyOf"]
    assert [form["type"] for form in forms] == ["array", "object"]
