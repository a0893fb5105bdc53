"""Profiles as files: found by name, read strictly, every fault reported with its key.

Scalars stay as they are written: YAML 1.1 would turn 010 into 8, 8:30 into 510 and ``on`` into
True, and leave 1e9 a string. The schema alone decides what a scalar means. A key given twice is an
error.
"""

from collections.abc import Hashable, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.figures import NamedFile

FileT = TypeVar("FileT", bound=NamedFile)
SUFFIXES = (".yaml", ".yml")


class _PlainLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # C if built
    """The safe loader without guesses about scalars and without silent duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  # PyYAML's own class attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that occurs twice; YAML itself would keep the last."""
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if isinstance(key, str) and key in seen:
                line = key_node.start_mark.line + 1
                raise ProfileError(f"line {line}: key {key!r} is given twice; keep one")
            if isinstance(key, str):
                seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


def names_in(folder: Path) -> list[str]:
    """Return the names of the profiles that ship in `folder`, sorted."""
    return sorted(path.stem for path in folder.iterdir() if path.suffix == SUFFIXES[0])


def find(name_or_path: str | Path, folder: Path, what: str) -> Path:
    """Return the file that a name (of a profile in `folder`) or a path means.

    Raises:
        ProfileError: If there is none; the names that exist are listed, the closest first.
    """
    path = Path(name_or_path)
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        if not path.is_file():
            raise ProfileError(f"{path}: no such file; give the path of a {what} in YAML")
        return path
    known = names_in(folder)
    if str(name_or_path) not in known:
        close = get_close_matches(str(name_or_path), known, n=len(known), cutoff=0.4)
        listed = [*close, *(name for name in known if name not in close)]
        raise ProfileError(
            f"no {what} {str(name_or_path)!r}; there are {listed}, or give the path of a .yaml file"
        )
    return folder / f"{name_or_path}{SUFFIXES[0]}"


def read_tree(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, scalars as strings.

    Raises:
        ProfileError: If it is not a YAML mapping in UTF-8, or a key occurs twice.
    """
    return _tree(read_text(path), path.name)


def _tree(text: str, where: str) -> dict[str, Any]:
    try:
        return parse_tree(text)
    except ProfileError as error:
        raise ProfileError(f"{where}: {error}") from error


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        ProfileError: If it is not there, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path.name}: cannot be read as UTF-8 text: {error}") from error


def parse_tree(text: str) -> dict[str, Any]:
    """Return the content of YAML text; see `read_tree`."""
    try:
        tree = yaml.load(text, Loader=_PlainLoader)  # noqa: S506  # a subclass of the safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ProfileError(f"{where}not valid YAML: {problem}") from error
    if not isinstance(tree, dict):
        raise ProfileError("expected keys and values (a YAML mapping) at the top of the file")
    return tree


def read(path: Path, schema: type[FileT]) -> FileT:
    """Return the profile in `path`; one that has been read before is known by the file's content.

    Raises:
        ProfileError: With one line per fault.
    """
    profile: FileT = _known(read_text(path), path.name, schema)
    if profile.name != path.stem:
        raise ProfileError(
            f"{path.name}: name: expected {path.stem!r} as the file is called, got {profile.name!r}"
        )
    return profile


@lru_cache(maxsize=64)
def _known(text: str, where: str, schema: type[FileT]) -> FileT:
    return validated(_tree(text, where), schema, where)


def validated(tree: Mapping[str, Any], schema: type[FileT], where: str) -> FileT:
    """Return `tree` as a profile, or raise with one line per fault, each led by `where`."""
    try:
        return schema.from_tree(tree)
    except ValidationError as error:
        lines = [
            f"{where}: {_fault(fault['loc'], fault, tree, schema)}"
            for fault in error.errors(include_url=False)
        ]
        raise ProfileError("\n".join(lines)) from error


def _fault(
    loc: tuple[int | str, ...], fault: Mapping[str, Any], tree: object, schema: type[BaseModel]
) -> str:
    """Say one fault in one line: key, what was expected, what was found."""
    keys = [str(part) for part in loc]
    value = fault["input"]
    if keys[-1:] == ["value"] and isinstance(_at(tree, keys[:-1]), list):
        keys.pop()
    key = ".".join(keys)
    kind = fault["type"]
    if kind == "value_error":
        return f"{key}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    if kind == "extra_forbidden":
        allowed = _keys_of(schema, keys[:-1])
        close = get_close_matches(keys[-1], allowed, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"{key}: unknown key; {hint}allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{key}: missing; this key is needed"
    message = str(fault["msg"])
    return f"{key}: {message[0].lower()}{message[1:]}, got {value!r}"


def _at(tree: object, keys: Iterable[str]) -> object:
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def _keys_of(schema: type[BaseModel], keys: Iterable[str]) -> list[str]:
    """Return the keys allowed under a dotted path of the schema."""
    annotation: object = schema
    for key in keys:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
            annotation = fields[key].annotation
        annotation = _inner(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [field.alias or name for name, field in annotation.model_fields.items()]
    return []


def _inner(annotation: object) -> object:
    """Strip ``Optional``, ``Annotated`` and ``dict[str, …]`` from around a model."""
    while not isinstance(annotation, type) or get_origin(annotation) is dict:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation = arguments[0]
        elif origin is dict:
            annotation = arguments[1]
        elif origin in (Union, UnionType):
            annotation = next(argument for argument in arguments if argument is not type(None))
        else:
            break
    return annotation
