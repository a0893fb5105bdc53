"""Finds a policy by its file's name, or a stranger's by ``module:Class``, and builds it.

A *spec* is one policy and its options, as on the command line::

    lru                          the file policies/cache/lru.py
    lfu:count=lifetime           an option; several are separated by commas
    insert_cap:limit=2/lru       a guard around another policy, which follows the slash
    periodic:file=dir/p.st       an option that is a path; a policy that has one guards no other
    mypackage.mine:Mine          a class of an installed module
    mine.py:Mine:depth=3         a class of a file

A policy is registered by existing: nothing is listed here.
"""

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.key_values import key_values
from moesim.simulator.policies.base import (
    CachePolicy,
    Policy,
    PrefetchPolicy,
    RunInfo,
    SchedulePolicy,
)

Axis = Literal["cache", "prefetch", "schedule"]

AXES: Mapping[Axis, type[Policy]] = {
    "cache": CachePolicy,
    "prefetch": PrefetchPolicy,
    "schedule": SchedulePolicy,
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a policy, read off its constructor."""

    name: str
    kind: Any
    default: Any

    def parse(self, text: str, where: str) -> Any:  # noqa: ANN401  the option's own type
        """Return the value that a text stands for.

        Raises:
            InputError: The text is not of the option's type.
        """
        try:
            return _parse(text, self.kind)
        except ValueError:
            raise InputError(
                f"{where}: option {self.name}={text}: expected {describe_kind(self.kind)}"
            ) from None


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A policy class with its options and, for a guard, the policy inside it.

    ``text`` is the spec as written, which names the policy in results.
    """

    axis: Axis
    text: str
    cls: type[Policy]
    options: Mapping[str, Any]
    inner: "PolicySpec | None" = None

    @property
    def all_options(self) -> dict[str, Any]:
        """The options, defaults included."""
        defaults = {name: option.default for name, option in options(self.cls).items()}
        return {**defaults, **self.options}

    @property
    def needs(self) -> frozenset[str]:
        """What the run must grant, the policy inside included."""
        own = self.cls.needs_for(self.all_options)
        return own | (self.inner.needs if self.inner else frozenset())

    @property
    def code_hash(self) -> str | None:
        """SHA-256 of what a spec's text does not determine; None where it says it all.

        That is a stranger's module, and files that options name.
        """
        inner = self.inner.code_hash if self.inner else None
        files = [
            hashlib.sha256(value.read_bytes()).hexdigest()
            for _, value in sorted(self.options.items())
            if isinstance(value, Path) and value.is_file()
        ]
        source = ""
        if not self.cls.__module__.startswith("moesim."):
            module = inspect.getmodule(self.cls)
            source = inspect.getsource(module) if module is not None else self.cls.__qualname__
        if not source and not files:
            return inner
        text = f"{source}{''.join(files)}{inner or ''}"
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def does(self) -> frozenset[str]:
        """What the policy may do beyond copying a demanded expert to the GPU."""
        own = self.cls.does_for(self.all_options)
        return own | (self.inner.does if self.inner else frozenset())

    @property
    def may_ask(self) -> bool:
        """Whether it, or what it guards, may have something computed elsewhere."""
        if self.cls.measured_ask_ns:
            return True
        if self.inner is not None:
            return self.inner.may_ask
        return getattr(self.cls, "asks", None) is not getattr(AXES[self.axis], "asks", None)

    @property
    def measured_ask_ns(self) -> dict[str, int]:
        """How long its asks were measured to take, those of the policy inside included."""
        inner = self.inner.measured_ask_ns if self.inner else {}
        return {**inner, **self.cls.measured_ask_ns}

    @property
    def is_lossy(self) -> bool:
        """Whether it may change the router's choices, and so the text."""
        return not self.does.isdisjoint({"reroute", "skip"})

    @property
    def timing_free(self) -> bool:
        """Whether decisions depend on the order of demands alone."""
        return self.cls.timing_free and (self.inner is None or self.inner.timing_free)

    def build(self, run: RunInfo) -> Any:  # noqa: ANN401  one of the three axes
        """Return a fresh policy for one run."""
        arguments: list[Any] = [run]
        if self.inner is not None:
            arguments.append(self.inner.build(run))
        return self.cls(*arguments, **self.options)


def names(axis: Axis) -> list[str]:
    """Return the names of the policies of one axis, those of installed plug-ins included."""
    package = importlib.import_module(f"moesim.simulator.policies.{axis}")
    own = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted({*own, *(point.name for point in _plugins(axis))})


def axis_of(text: str) -> Axis:
    """Return the axis of a policy that is named by ``module:Class``.

    Raises:
        InputError: The class derives from none of the three.
    """
    name, _ = _split(text)
    for axis, base in AXES.items():
        if issubclass(_stranger("policy", name), base):
            return axis
    raise AssertionError


def options(cls: type[Policy]) -> dict[str, Option]:
    """Return the options of a policy class: the keyword-only arguments of its constructor."""
    hints = get_type_hints(cls.__init__)
    return {
        name: Option(name, hints.get(name, str), parameter.default)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def guards(cls: type[Policy]) -> bool:
    """Return whether the class is a guard around another policy of its axis."""
    return "inner" in inspect.signature(cls).parameters


def parse(axis: Axis, text: str) -> PolicySpec:
    """Return the policy that a spec names.

    Raises:
        UnknownNameError: No such policy or option; the message lists what there is.
        InputError: An option's value is of the wrong type, or a guard lacks what it guards.
    """
    is_of_file = text.split(":", maxsplit=1)[0].endswith(".py")
    head, slash, rest = (text, "", "") if is_of_file else text.partition("/")
    name, option_text = _split(head)
    cls = find(axis, name)
    if slash and _takes_file(cls):
        head, slash, rest = text, "", ""
        option_text = _split(head)[1]
    known = options(cls)
    where = f"{axis} policy {name}"
    values = {}
    for key, value in key_values(option_text, where).items():
        if key not in known:
            raise UnknownNameError(f"option of {where}", key, known)
        values[key] = known[key].parse(value, where)
    missing = [key for key, option in known.items() if option.default is inspect.Parameter.empty]
    for key in missing:
        if key not in values:
            raise InputError(f"{where} needs its option {key}; write {name}:{key}=VALUE")
    if guards(cls) and not slash:
        raise InputError(f"{where} guards another; write {head}/POLICY")
    if slash and not guards(cls):
        raise InputError(f"{where} guards no other; '/{rest}' has no place")
    return PolicySpec(axis, text, cls, values, parse(axis, rest) if slash else None)


def name_of(text: str) -> str:
    """Return the name in a policy's spec.

    >>> name_of("lfu:count=lifetime")
    'lfu'
    """
    return _split(text)[0]


def find(axis: Axis, name: str) -> type[Policy]:
    """Return the class that a name stands for, without options."""
    if ":" in name:
        return _stranger(axis, name)
    package = f"moesim.simulator.policies.{axis}"
    for point in _plugins(axis):
        if point.name == name:
            return _check(axis, point.load(), name)
    if name not in names(axis):
        raise UnknownNameError(f"{axis} policy", name, names(axis))
    module = importlib.import_module(f"{package}.{name}")
    return _check(axis, getattr(module, module.__all__[0]), name)


def describe_kind(kind: Any) -> str:  # noqa: ANN401
    """Return a type as a reader of the command line knows it."""
    if get_origin(kind) is Literal:
        return " | ".join(str(value) for value in get_args(kind))
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(describe_kind(part) for part in get_args(kind) if part is not type(None))
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a file",
    }.get(kind, str(kind))


def _takes_file(cls: type[Policy]) -> bool:
    """Return whether an option is a path, whose slashes lead to no policy inside."""
    return any(Path in (option.kind, *get_args(option.kind)) for option in options(cls).values())


def _split(head: str) -> tuple[str, str]:
    """Split a spec into name and options; ``module:Class`` is a name, told by its capital."""
    parts = head.split(":")
    is_stranger = len(parts) > 1 and (parts[0].endswith(".py") or parts[1][:1].isupper())
    cut = 2 if is_stranger else 1
    return ":".join(parts[:cut]), ":".join(parts[cut:])


def _stranger(axis: Axis | Literal["policy"], name: str) -> type[Policy]:
    place, _, attribute = name.partition(":")
    try:
        module = (
            _module_of_file(Path(place))
            if place.endswith(".py")
            else importlib.import_module(place)
        )
    except ModuleNotFoundError as error:
        raise InputError(f"{_called(axis)} {name}: {error}; is it installed?") from None
    try:
        cls = getattr(module, attribute)
    except AttributeError:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise UnknownNameError(f"class in {place}", attribute, classes) from None
    return _check(axis, cls, name)


def _called(axis: Axis | Literal["policy"]) -> str:
    return "policy" if axis == "policy" else f"{axis} policy"


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{unique}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"{path}: line {error.lineno}: {error.msg}") from None
    except ImportError as error:
        raise InputError(f"{path}: {error}") from error
    return module


def _check(axis: Axis | Literal["policy"], cls: Any, name: str) -> type[Policy]:  # noqa: ANN401
    base = Policy if axis == "policy" else AXES[axis]
    if not (inspect.isclass(cls) and issubclass(cls, base)):
        raise InputError(
            f"{_called(axis)} {name}: expected a subclass of {base.__name__}, got {cls!r}"
        )
    return cls


@cache  # reads the files of every installed distribution: 16 ms
def _plugins(axis: Axis) -> Any:  # noqa: ANN401  EntryPoints
    return entry_points(group=f"moesim.policies.{axis}")


def _parse(text: str, kind: Any) -> Any:  # noqa: ANN401
    if get_origin(kind) is Literal:
        for value in get_args(kind):
            if str(value) == text:
                return value
        raise ValueError
    if get_origin(kind) in (Union, UnionType):
        if text == "none":
            return None
        return _parse(text, next(part for part in get_args(kind) if part is not type(None)))
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError
        return text == "true"
    return kind(text)
