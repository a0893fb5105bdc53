"""``moesim system``: the named bundles of policies."""

from typing import Annotated

import typer

system = typer.Typer(no_args_is_help=True, help="List the systems, and show one.")


@system.command("list")
def list_systems() -> None:
    """List the systems, one line each."""
    from moesim.simulator.systems import load, names
    from moesim.simulator.tables import print_table

    rows = [(name, load(name).description) for name in names()]
    print_table("--system", ("name", "what it is"), rows)


@system.command()
def show(
    name: Annotated[str, typer.Argument(help="A name of `moesim system list`, or a YAML file.")],
) -> None:
    """Print a system's policies, its source, and where it departs from it."""
    from moesim.simulator.systems import load
    from moesim.simulator.tables import print_fields

    print_fields(f"system {name}", load(name).model_dump())
