"""`muomni`: the app and its error handling. A mistake of the user's ends in one clear line and exit code 1."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from omni import __version__
from omni.cli import bench, data, demo, evaluate, generate, inspect, serve, train
from omni.cli.output import log_to_stderr, note
from omni.errors import OmniError

app = typer.Typer(
    name="muomni",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A small omni-modal model: text, pictures and speech in; text and speech out.",
)
for module in (demo, generate, train, data, evaluate, inspect, serve, bench):
    module.register(app)


@dataclass
class Globals:
    """Options that stand before the command."""

    debug: bool = False


def _version(show: bool) -> None:
    if show:
        typer.echo(f"muomni {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="MUOMNI_DEBUG", help="show the traceback of an error")] = False,
) -> None:
    """Every command has --help."""
    context.obj.debug = debug


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    chosen = Globals()
    log_to_stderr()
    try:
        result = app(args=list(arguments) if arguments is not None else None, standalone_mode=False, obj=chosen)
        return result if isinstance(result, int) else 0
    except OmniError as error:
        if chosen.debug:
            raise
        note(f"error: {error}")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        note("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        return 1
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's usage errors
        if usage is None:
            raise
        note(f"error: {usage()}")
        return getattr(error, "exit_code", 2)


def entry_point() -> None:
    """What the installed command runs."""
    sys.exit(main())
