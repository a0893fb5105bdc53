"""What a sweep runs: a YAML file with what all runs share, a grid, and a list.

::

    base:                       # options of all runs
      trace: olmoe.npz          # relative to the file
      hardware: rtx4090
    grid:                       # every combination
      cache: [lru, lfu]
      slots: [10%, 25%, 50%]
    runs:                       # each of these, under each combination; one empty one if left out
      - {}
      - {prefetch: "next_gate:width=4"}

The keys are the options of ``moesim simulate``. A run's own entry goes before the grid, the grid
before the base.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from moesim.hardware_profiles.errors import ProfileError
from moesim.hardware_profiles.files import read_tree
from moesim.hardware_profiles.units import parse_ns
from moesim.simulator.errors import InputError, UnknownNameError
from moesim.simulator.gpus.placement import PLACEMENTS
from moesim.simulator.key_values import key_values
from moesim.simulator.memory import MemorySpec
from moesim.simulator.registry import AXES
from moesim.simulator.run_spec import RunSpec
from moesim.simulator.runs import ENGINE_NAMES
from moesim.simulator.serving.stream import with_files
from moesim.simulator.tiers.plan import TierSpec
from moesim.traces import RoutingTrace, load, parse_mapping

TRACES_KEPT = 4
"""Traces that a process keeps open at a time; each is loaded once while its runs follow on."""

PATHS = ("trace", "profile_trace")
FILES = ("hardware", "runtime", "system", "model", "cost_of")
"""Options that are a name or a file; files are told by their suffix."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


class RunOptions(BaseModel):
    """One run as ``moesim simulate`` would be told it; None is that option left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    trace: str
    hardware: str
    map: str | None = None
    requests: int | None = Field(default=None, ge=1)
    runtime: str | None = None
    system: str | None = None
    cache: str | None = None
    prefetch: str | None = None
    schedule: str | None = None
    policy_module: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    vram: str | None = None
    expert_budget: str | None = None
    slots: str | None = None
    ram: str | None = None
    host_cache: str | None = None
    host_exclusive: bool = False
    host_empty: bool = False
    peer_cache: str | None = None
    peer_policy: str | None = None
    arrivals: str | None = None
    batching: str | None = None
    max_batch: int | None = Field(default=None, ge=1)
    chunk: int | None = Field(default=None, ge=1)
    slo: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    max_waiting: int | None = Field(default=None, ge=1)
    kv: str | None = None
    kv_reserve: str | None = None
    model: str | None = None
    weights_format: str | None = Field(default=None, alias="format")
    cost_of: str | None = None
    profile_trace: str | None = None
    gpus: int = Field(default=1, ge=1)
    placement: str = PLACEMENTS[0]
    shared_dram: bool = False
    engine: str = ENGINE_NAMES[0]
    seed: int = Field(default=0, ge=0)
    ask: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()

    def given(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as the file writes them."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def run_spec(self) -> RunSpec:
        """Return the run, its traces loaded.

        Raises:
            MoesimError, TraceError: As for ``moesim simulate``.
        """
        from moesim.simulator.commands.policies import choose_policies  # noqa: PLC0415  a cycle
        from moesim.simulator.commands.serving import choose_serving  # noqa: PLC0415  the same

        if self.engine not in ENGINE_NAMES:
            raise UnknownNameError("engine", self.engine, ENGINE_NAMES)
        chosen = choose_policies(
            self.system, self.runtime, self.cache, self.prefetch, self.schedule, self.policy_module
        )
        chosen.policies["schedule"], serving = choose_serving(
            chosen.policies["schedule"],
            arrivals=self.arrivals,
            requests=self.requests,
            batching=self.batching,
            max_batch=self.max_batch,
            chunk=self.chunk,
            slo=self.slo,
            max_waiting=self.max_waiting,
            kv=self.kv,
            kv_reserve=self.kv_reserve,
        )
        return RunSpec(
            trace=_load(self.trace, self.map, self.requests if serving is None else None),
            trace_name=Path(self.trace).name,
            hardware=self.hardware,
            policies=chosen.policies,
            runtime=chosen.runtime,
            system=chosen.system,
            memory=MemorySpec(self.vram, self.expert_budget, self.slots, self.kv, self.ram),
            model=self.model,
            weights_format=self.weights_format,
            cost_of=self.cost_of,
            profile_trace=_load(self.profile_trace, None, None) if self.profile_trace else None,
            engine=self.engine,
            gpus=self.gpus,
            placement=self.placement,
            shared_dram=self.shared_dram,
            seed=self.seed,
            ask_ns=_ask_ns(self.ask),
            serving=serving,
            tiers=TierSpec(
                self.host_cache,
                self.host_exclusive,
                self.host_empty,
                self.peer_cache,
                self.peer_policy,
            ),
        )


def _ask_ns(texts: Sequence[str]) -> dict[str, int]:
    form = "NAME=TIME, such as predict_use=380ms"
    where = f"--ask {','.join(texts)}"
    times = {}
    for name, time in key_values(",".join(texts), where, form=form).items():
        try:
            times[name] = parse_ns(time)
        except ValueError:
            raise InputError(f"{where}: {name}={time}: expected {form}") from None
    return times


def _one_empty() -> list[dict[str, Any]]:
    return [{}]


class _SweepFile(BaseModel):
    """The file's own keys; what is under them are options."""

    model_config = ConfigDict(extra="forbid")

    base: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Annotated[list[Any], BeforeValidator(_as_list)]] = Field(default_factory=dict)
    runs: list[dict[str, Any]] = Field(default_factory=_one_empty)


def read_sweep(path: Path) -> list[RunOptions]:
    """Return the runs that a file asks for, in the order of its list, then of its grid.

    Raises:
        InputError: The file cannot be read, or a key or value in it is wrong; one line that names
            it.
    """
    try:
        tree = read_tree(path)
    except ProfileError as error:
        raise InputError(str(error)) from error
    try:
        file = _SweepFile.model_validate(tree)
    except ValidationError as error:
        raise InputError(_first_fault(path.name, error, _SweepFile)) from None
    _check_keys(path.name, file)
    for key, values in file.grid.items():
        if not values:
            raise InputError(f"{path.name}: grid.{key}: an empty list leaves nothing to run")
    runs = []
    for number, entry in enumerate(file.runs, 1):
        axes = {key: values for key, values in file.grid.items() if key not in entry}
        for combination in product(*axes.values()):
            options = {**file.base, **dict(zip(axes, combination, strict=True)), **entry}
            try:
                run = RunOptions.model_validate(options)
            except ValidationError as error:
                where = f"{path.name}: run {number} of the list"
                raise InputError(_first_fault(where, error, RunOptions)) from None
            runs.append(_located(run, path.parent))
    if not runs:
        raise InputError(f"{path.name}: runs: the list is empty; leave the key out for the grid")
    return runs


def _check_keys(name: str, file: _SweepFile) -> None:
    allowed = _keys(RunOptions)
    parts: list[tuple[str, Mapping[str, Any]]] = [("base", file.base), ("grid", file.grid)]
    parts += [(f"runs.{number}", entry) for number, entry in enumerate(file.runs, 1)]
    for part, options in parts:
        for key in options:
            if key not in allowed:
                raise InputError(f"{name}: {part}.{key}: {_unknown(key, allowed)}")


def _first_fault(where: str, error: ValidationError, schema: type[BaseModel]) -> str:
    fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: {key}: {_unknown(key, _keys(schema))}"
    if fault["type"] == "missing":
        return f"{where}: {key}: missing; put it under base, grid or runs"
    message = str(fault["msg"])
    return f"{where}: {key}: {message[0].lower()}{message[1:]}, got {fault['input']!r}"


def _unknown(key: str, allowed: list[str]) -> str:
    close = get_close_matches(key, allowed, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"unknown key; {hint}allowed here: {', '.join(allowed)}"


def _keys(schema: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in schema.model_fields.items()]


def _located(run: RunOptions, folder: Path) -> RunOptions:
    """Return the run with its files found from the folder of the sweep, wherever it is run."""
    found: dict[str, Any] = {
        name: str((folder / path).absolute()) for name in PATHS if (path := getattr(run, name))
    }
    for name in FILES:
        value = getattr(run, name)
        if value and Path(value).suffix in (".yaml", ".yml", ".json"):
            found[name] = str((folder / value).absolute())
    for axis in (*AXES, "host_cache", "peer_policy"):
        if spec := getattr(run, axis):
            found[axis] = _located_policy(spec, folder)
    if run.arrivals:
        found["arrivals"] = with_files(run.arrivals, lambda path: (folder / path).absolute())
    modules = tuple(_located_policy(spec, folder) for spec in run.policy_module)
    return run.model_copy(update={**found, "policy_module": modules})


def _located_policy(spec: str, folder: Path) -> str:
    """Return the spec of a policy, its file found from a folder if it is of a file."""
    place, colon, rest = spec.partition(":")
    return f"{(folder / place).absolute()}{colon}{rest}" if place.endswith(".py") else spec


@lru_cache(maxsize=TRACES_KEPT)
def _load(path: str, mapping: str | None, requests: int | None) -> RoutingTrace:
    trace = load(path, mapping=parse_mapping(mapping) if mapping else None)
    kept = trace if requests is None else trace.head(requests=requests)
    return kept.knowing(kept.content_hash())
