"""The `normscope` command: finds its commands, and turns every error into one line and an exit code."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import typer

from normscope.errors import Interrupted, NormscopeError, one_line
from normscope.runtime.allocator import keep_large_blocks
from normscope.runtime.quiet import be_quiet
from normscope.version import __version__

FOUND, FAILURE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="normscope",
    help="Ask a network why it cannot take a larger learning rate, and what normalization would buy it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


GLOBAL = ("--quiet", "--no-color")
"""Options of every command, wherever in the line they stand."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"normscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress: the answer and errors alone."),
    no_color: bool = typer.Option(False, "--no-color", help="No colours; the variable NO_COLOR does the same."),
) -> None:
    if no_color:
        os.environ["NO_COLOR"] = "1"  # what rich asks
    be_quiet(quiet)


@cache
def command_line() -> Any:
    """The parser, with every command that lies in the folder."""
    import normscope.cli.commands as commands

    for module in pkgutil.iter_modules(commands.__path__):
        app.command(module.name)(importlib.import_module(f"{commands.__name__}.{module.name}").command)
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line. An error of normscope's, a full disk or Ctrl-C is one line and a non-zero exit; anything
    else is a bug, shown in full only where NORMSCOPE_TRACEBACK is set."""
    keep_large_blocks()
    words = sorted(sys.argv[1:], key=lambda word: word not in GLOBAL)  # the order of the others stays
    try:
        code = command_line()(words, standalone_mode=False, prog_name=app.info.name)
        if code == INTERRUPTED:  # on Ctrl-C some releases of typer return this code, others raise Abort
            raise KeyboardInterrupt
        if code == FOUND:  # a command's own answer, and no failure
            sys.exit(FOUND)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted: what is done is kept, run the same command to go on", INTERRUPTED)
    except NormscopeError as error:
        _fail(str(error), INTERRUPTED if isinstance(error, Interrupted) else FAILURE)
    except Exception as error:
        if isinstance(usage := getattr(error, "format_message", None), Callable):  # the parser's own usage errors
            if not (said := " ".join(str(usage()).split())):  # no command at all: the help is shown
                sys.exit(FAILURE)
            asked = getattr(getattr(error, "ctx", None), "command_path", "normscope")
            _fail(f"{said} See {asked} --help", FAILURE)
        if os.environ.get("NORMSCOPE_TRACEBACK"):
            raise
        _fail(
            f"bug in normscope: {type(error).__name__}: {one_line(error)}; set NORMSCOPE_TRACEBACK=1 to see where",
            FAILURE,
        )


def _fail(message: str, code: int) -> NoReturn:
    print(f"normscope: {message}", file=sys.stderr)
    sys.exit(code)
