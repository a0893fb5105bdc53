"""A figure: a quantity and how we know it.

In a file a figure is ``[24GiB, ada]``: the quantity and the name of a block under ``sources:``. In
full it is ``{value: 24GiB, evidence: datasheet, source: "…"}``. Either way nothing is known
without its evidence.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from moesim.hardware_profiles import units
from moesim.hardware_profiles.errors import ProfileError

T = TypeVar("T")
Kind = Literal["measured", "datasheet", "estimated"]
_WHOLE_PPM = 1_000_000
_PERCENT = WithJsonSchema({"type": ["number", "string"], "examples": [0.9, "90%"]})
STRENGTH: tuple[Kind, ...] = ("estimated", "datasheet", "measured")


def _quantity(example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "examples": [example]})


def _share(value: object) -> int:
    share_ppm = units.parse_ppm(value)
    if share_ppm > _WHOLE_PPM:
        raise ProfileError(f"expected at most 100%, got {value!r}")
    return share_ppm


def _efficiency(value: object) -> int:
    share_ppm = _share(value)
    if share_ppm == 0:
        raise ProfileError(f"expected more than 0%, got {value!r}")
    return share_ppm


Bytes = Annotated[int, BeforeValidator(units.parse_bytes), Field(gt=0), _quantity("24GiB")]
BytesPerSecond = Annotated[
    int, BeforeValidator(units.parse_bytes_per_s), Field(gt=0), _quantity("25.0 GB/s")
]
FlopPerSecond = Annotated[
    int, BeforeValidator(units.parse_flop_per_s), Field(gt=0), _quantity("165.2 TFLOP/s")
]
Nanoseconds = Annotated[int, BeforeValidator(units.parse_ns), _quantity("8us")]
Share = Annotated[int, BeforeValidator(_share), _PERCENT]
Efficiency = Annotated[int, BeforeValidator(_efficiency), _PERCENT]
Multiple = Annotated[float, Field(ge=1, le=100)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Base of all that a profile file holds: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Measurement(Strict):
    """How a figure was measured."""

    command: str
    date: str
    driver: str
    samples: Count
    spread: Share


class Evidence(Strict):
    """How we know: measured here, printed on a datasheet, or estimated from something else.

    Attributes:
        evidence: The kind.
        source: Which datasheet, or what the estimate rests on.
        band: How far the truth may be, relative, in ppm; an estimate must say.
        measured: Command, date, driver, samples and spread; a measurement must say.
    """

    evidence: Kind
    source: str = Field(min_length=3)
    band: Efficiency | None = None
    measured: Measurement | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.evidence == "estimated" and self.band is None:
            raise ProfileError("an estimate needs a band; add for example band: 15%")
        if (self.evidence == "measured") != (self.measured is not None):
            raise ProfileError(
                "evidence 'measured' and the key 'measured' go together; give "
                "measured: {command, date, driver, samples, spread}, or call it an estimate"
            )
        return self

    @property
    def band_ppm(self) -> int:
        """The relative band in ppm: as given, else the spread of the measurement, else 0."""
        if self.band is not None:
            return self.band
        return self.measured.spread if self.measured is not None else 0


class Figure(Evidence, Generic[T]):
    """A quantity with its evidence."""

    value: T

    @model_validator(mode="before")
    @classmethod
    def _from_pair(cls, data: object, info: ValidationInfo) -> object:
        """Turn ``[value, source name]`` into the full form."""
        if isinstance(data, dict | Figure):
            return data
        if not isinstance(data, list) or len(data) != len(("value", "source")):
            raise ProfileError(
                f"expected [value, name of a source], got {data!r}; a figure needs evidence"
            )
        value, name = data
        sources: Mapping[str, Mapping[str, object]] = info.context or {}
        if name not in sources:
            raise ProfileError(f"no source {name!r}; there are {sorted(sources)}")
        return {"value": value, **sources[name]}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        full = handler.resolve_ref_schema(handler(core_schema))
        pair = {
            "type": "array",
            "prefixItems": [full["properties"]["value"], {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        }
        return {"anyOf": [pair, full]}


def _readable_version(value: object) -> object:
    """Accept the one version of the schema that there is."""
    if str(value) != "1":
        raise ProfileError(f"this moesim reads schema: 1, got {value!r}")
    return 1


class NamedFile(Strict):
    """What every YAML file of ours has: a schema version, and a name that is also the file's."""

    schema_version: Annotated[Literal[1], BeforeValidator(_readable_version)] = Field(
        alias="schema"
    )
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")

    @classmethod
    def from_tree(cls, tree: Mapping[str, object]) -> Self:
        """Validate what a YAML file holds; `tree` is its content, quantities as written.

        Raises:
            pydantic.ValidationError: With one entry per fault.
        """
        return cls.model_validate(dict(tree), context=_usable_sources(tree.get("sources")))


class ProfileFile(NamedFile):
    """What hardware and runtime files share: a title and a table of sources.

    Attributes:
        sources: Evidence by the name that figures refer to.
    """

    title: str = Field(min_length=3)
    sources: dict[str, Evidence] = Field(default_factory=dict)

    def figures(self) -> Iterator[tuple[str, Figure[Any]]]:
        """Yield every figure of the file with its dotted key, in file order."""
        yield from _walk("", self)


def weakest(evidence: Iterator[Kind] | list[Kind]) -> Kind:
    """Return the weakest kind: a chain is as strong as its weakest link.

    >>> weakest(["measured", "estimated", "datasheet"])
    'estimated'
    """
    return min(evidence, key=STRENGTH.index)


def _usable_sources(sources: object) -> dict[str, Mapping[str, object]]:
    """Return the sources that figures may refer to, as written.

    One that is itself faulty counts as known, so that its fault is reported once, at its own key.
    """
    usable: dict[str, Mapping[str, object]] = {}
    for name, source in sources.items() if isinstance(sources, Mapping) else ():
        try:
            Evidence.model_validate(source)
        except ValidationError:
            usable[name] = {"evidence": "datasheet", "source": "faulty"}
        else:
            usable[name] = source
    return usable


def _walk(key: str, node: object) -> Iterator[tuple[str, Figure[Any]]]:
    if isinstance(node, Figure):
        yield key, node
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            yield from _walk(f"{key}.{name}" if key else name, getattr(node, name))
    elif isinstance(node, Mapping):
        for name, child in node.items():
            yield from _walk(f"{key}.{name}", child)
