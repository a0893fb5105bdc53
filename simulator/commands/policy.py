"""``moesim policy``: the policies that can be named on the command line."""

import inspect
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moesim.simulator.registry import Axis

policy = typer.Typer(no_args_is_help=True, help="List the policies of each axis, and show one.")


@policy.command("list")
def list_policies(
    axis: Annotated[
        str | None, typer.Argument(help="cache, prefetch or schedule; all if left out.")
    ] = None,
) -> None:
    """List the policies, one line each."""
    from moesim.simulator import registry
    from moesim.simulator.errors import UnknownNameError
    from moesim.simulator.tables import print_table

    if axis is not None and axis not in registry.AXES:
        raise UnknownNameError("axis", axis, registry.AXES)
    for each in registry.AXES:
        if axis in (None, each):
            rows = [(name, _summary(registry.find(each, name))) for name in registry.names(each)]
            print_table(f"--{each}", ("name", "what it does"), rows)


@policy.command()
def show(name: Annotated[str, typer.Argument(help="A policy's name, or file.py:Class.")]) -> None:
    """Print what a policy does, its options, what it needs and where it comes from."""
    from moesim.simulator import registry
    from moesim.simulator.errors import UnknownNameError
    from moesim.simulator.tables import print_fields

    axes: list[Axis] = [registry.axis_of(name)] if ":" in name else list(registry.AXES)
    found = [axis for axis in axes if ":" in name or name in registry.names(axis)]
    if not found:
        raise UnknownNameError(
            "policy", name, [n for axis in registry.AXES for n in registry.names(axis)]
        )
    for axis in found:
        cls = registry.find(axis, name)
        fields: dict[str, object] = {"axis": axis, "what it does": inspect.getdoc(cls)}
        for option in registry.options(cls).values():
            kind = registry.describe_kind(option.kind)
            default = (
                "required"
                if option.default is inspect.Parameter.empty
                else f"default {option.default}"
            )
            fields[f"option {option.name}"] = f"{kind}; {default}"
        fields["needs"] = ", ".join(sorted(cls.needs)) or "nothing"
        fields["guards"] = "another policy, written after a slash" if registry.guards(cls) else "-"
        fields["timing-free"] = "yes" if cls.timing_free else "no: it looks at times"
        fields["source"] = cls.paper or "-"
        print_fields(f"{axis} policy {name}", fields)


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n", maxsplit=1)[0].replace("\n", " ")
