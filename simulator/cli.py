"""The ``moesim`` command: finds its commands among the installed packages and runs one.

Commands are entry points of the group ``moesim.commands``, a function or a group each, so that
higher layers add theirs without being imported from here. Their modules are light: what is heavy
is imported when a command runs.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a backend is not available, 130 interrupted.
"""

import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

ORDER = (
    "simulate",
    "sweep",
    "frontier",
    "plan",
    "record",
    "execute",
    "trace",
    "profile",
    "policy",
    "system",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"moesim {version('moesim')}")
        raise typer.Exit


def build_app() -> typer.Typer:
    """Return the application with every installed command."""
    app = typer.Typer(
        name="moesim",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def describe(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_show_version, is_eager=True, help="Show the version."
            ),
        ] = False,
    ) -> None:
        """Which policy, how much VRAM, which GPU, and how fast will your MoE model be?

        moesim replays a recorded routing trace against a model of PCIe, VRAM, CPU and GPU, under
        cache, prefetch and schedule policies that you choose. Try:

        moesim simulate TRACE --hardware rtx4090 --system mixtral-offloading --slots 25%
        """

    points = entry_points(group="moesim.commands")
    for point in sorted(
        points, key=lambda p: (ORDER.index(p.name) if p.name in ORDER else 99, p.name)
    ):
        command = point.load()
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)
    return app


def main() -> None:
    """Run the command line; what the user did wrong is one line on stderr."""
    try:
        build_app()()
    except KeyboardInterrupt:
        typer.echo("moesim: interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        from moesim.simulator import errors  # noqa: PLC0415  only when something failed

        if not isinstance(error, errors.USER_ERRORS):
            raise
        typer.echo(f"moesim: {error}", err=True)
        sys.exit(3 if isinstance(error, errors.UnavailableError) else 1)


if __name__ == "__main__":
    main()
