"""``moesim profile``: the machines, and how to describe another."""

from pathlib import Path
from typing import Annotated

import typer

profile = typer.Typer(no_args_is_help=True, help="List, show, check and write hardware profiles.")

Name = Annotated[str, typer.Argument(help="A name of `moesim profile list`, or a YAML file.")]


@profile.command("list")
def list_profiles(
    runtimes: Annotated[
        bool, typer.Option("--runtimes", help="List runtimes instead of machines.")
    ] = False,
) -> None:
    """List the machines (or runtimes) that ship."""
    from moesim import hardware_profiles as hardware
    from moesim.simulator.tables import print_table

    if runtimes:
        rows = [(name, hardware.load_runtime(name).title) for name in hardware.runtime_names()]
    else:
        rows = [(name, hardware.load(name).title) for name in hardware.names()]
    print_table("runtimes" if runtimes else "machines", ("name", "what it is"), rows)


@profile.command()
def show(name: Name) -> None:
    """Print a profile, every figure with its evidence."""
    from moesim.hardware_profiles.catalogue import FOLDER, load
    from moesim.hardware_profiles.files import find

    load(name)
    typer.echo(find(name, FOLDER, "hardware profile").read_text(encoding="utf-8"), nl=False)


@profile.command()
def new(
    name: Annotated[
        str, typer.Argument(help="Name of the new machine, and of its file NAME.yaml.")
    ],
    like: Annotated[str, typer.Option("--like", help="The profile to start from.")],
    vram: Annotated[str | None, typer.Option(help="VRAM of one GPU, such as 32GiB.")] = None,
    memory_bandwidth: Annotated[
        str | None, typer.Option(help="Of the VRAM, such as '1792 GB/s'.")
    ] = None,
    bf16: Annotated[str | None, typer.Option(help="Dense peak, such as '209 TFLOP/s'.")] = None,
    pcie: Annotated[
        str | None, typer.Option(help="Generation and width, such as '5.0 x16'.")
    ] = None,
    h2d: Annotated[
        str | None, typer.Option(help="What pinned copies reach, such as '50 GB/s'.")
    ] = None,
    ram: Annotated[str | None, typer.Option(help="RAM of the host, such as 128GiB.")] = None,
    more: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other figure: OPTION=VALUE; a wrong one lists all."),
    ] = None,
    folder: Annotated[Path, typer.Option("--folder", help="Where to write it.")] = Path(),
) -> None:
    """Write a profile like another but for what is given; its evidence is `estimated`, with a band.

    moesim profile new mine --like rtx4090 --vram 32GiB --h2d "50 GB/s"
    """
    from moesim.hardware_profiles.drafts import write_new
    from moesim.simulator.errors import InputError

    named = {
        "vram": vram,
        "memory_bandwidth": memory_bandwidth,
        "bf16": bf16,
        "pcie": pcie,
        "h2d": h2d,
        "ram": ram,
    }
    given = {option: value for option, value in named.items() if value is not None}
    for item in more or []:
        option, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set {item}: expected OPTION=VALUE")
        given[option.replace("-", "_")] = value
    path = write_new(name, like=like, folder=folder, **given)
    typer.echo(f"wrote {path}; use it as --hardware {path}")


@profile.command()
def check(file: Annotated[Path, typer.Argument(help="A profile's YAML.")]) -> None:
    """Check a profile: keys, units, evidence; the first fault is one line and exit code 1."""
    from moesim.hardware_profiles import check as check_profile

    check_profile(file)
    typer.echo(f"{file.name}: valid")


@profile.command()
def schema() -> None:
    """Print the JSON Schema of a profile, for editors that complete YAML."""
    import json

    from moesim.hardware_profiles import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))
