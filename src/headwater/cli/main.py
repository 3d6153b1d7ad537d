"""``headwater``: builds the app and turns errors into exit codes.

Exit codes: 0 done · 1 a check failed · 2 wrong input (arguments, configuration, data) · 3 a part of the
system cannot be reached; trying again is safe.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from headwater import __version__
from headwater.cli import (
    alerts,
    archive,
    backup,
    bench,
    capacity,
    closed_loop,
    controls,
    demo,
    doctor,
    drift,
    erase,
    evaluate,
    experiments,
    explain,
    exploration,
    features,
    importing,
    init,
    keys,
    ladder,
    learn,
    models,
    ope,
    pipeline,
    recommend,
    rules,
    serve,
    train,
)
from headwater.cli.options import EXIT_INPUT, EXIT_UNAVAILABLE, configure_logging
from headwater.schema.errors import HeadwaterError, UnavailableError

# In the order of the help text.
GROUPS = (
    init, importing, train, evaluate, experiments, models, learn, serve, alerts, controls, keys, recommend, explain, pipeline, ladder, exploration, ope,
    rules, features, archive, backup, erase, bench, closed_loop, capacity, drift, demo, doctor,
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headwater {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[  # noqa: ARG001  (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """A real-time recommendation system: durable events, exact features, ranked answers in milliseconds.

    Exit codes: 0 done, 1 a check failed, 2 wrong input, 3 a part of the system cannot be reached.
    """
    configure_logging("warning")


def build_app() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="headwater",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for group in GROUPS:
        group.register(app)
    return app


def main() -> None:
    """Entry point of the ``headwater`` command."""
    try:
        build_app()()
    except UnavailableError as error:
        _fail(error, EXIT_UNAVAILABLE)
    except HeadwaterError as error:
        _fail(error, EXIT_INPUT)
    except OSError as error:
        if error.filename is None:  # no path that a person could mend
            raise
        _fail(f"{error.filename}: {error.strerror}", EXIT_INPUT)


def _fail(error: HeadwaterError | str, code: int) -> None:
    typer.secho(f"headwater: {error}", err=True, fg="red")
    sys.exit(code)


if __name__ == "__main__":
    main()
