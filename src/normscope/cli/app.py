"""The `normscope` command: finds its commands, and turns every error into one line and an exit code."""

import importlib
import os
import pkgutil
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NoReturn

import typer

from normscope.cli.console import flush_output, leave, writable_streams
from normscope.errors import Interrupted, NormscopeError, at, one_line, raised
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


NO_COLOR = "--no-color"
GLOBAL = ("--quiet", NO_COLOR)
"""Options of every command, wherever in the line they stand."""


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"normscope {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress: the answer and errors alone."),
    no_color: bool = typer.Option(False, NO_COLOR, help="No colours; the variable NO_COLOR does the same."),
) -> None:
    be_quiet(quiet)


@cache
def command_line() -> Any:
    """The parser, with every command that lies in the folder."""
    import normscope.cli.commands as commands

    for module in pkgutil.iter_modules(commands.__path__):
        app.command(module.name)(importlib.import_module(f"{commands.__name__}.{module.name}").command)
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line. What goes wrong is one line and a non-zero exit: an error of normscope's, what the user's
    own code raises (also where it exits), a full disk or a closed output, Ctrl-C. Anything else is a bug. Where
    NORMSCOPE_TRACEBACK is set, all is shown in full."""
    writable_streams()
    warnings.showwarning = _show_warning
    keep_large_blocks()
    if NO_COLOR in sys.argv:
        os.environ["NO_COLOR"] = "1"  # what rich asks, also where it prints help, before any option is looked at
    words = sorted(sys.argv[1:], key=lambda word: word not in GLOBAL)  # the order of the others stays
    try:
        code = command_line()(words, standalone_mode=False, prog_name=app.info.name)
        if code == INTERRUPTED:  # on Ctrl-C some releases of typer return this code, others raise Abort
            raise KeyboardInterrupt
        flush_output()
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted: what is done is kept, run the same command to go on", INTERRUPTED)
    except NormscopeError as error:
        _fail(_in_options(str(error)), INTERRUPTED if isinstance(error, Interrupted) else FAILURE, error)
    except BaseException as error:
        if "_NORMSCOPE_COMPLETE" in os.environ:  # a shell asks, and the parser exits
            raise
        _fail(_said(error), FAILURE, error)
    if code in (FOUND, FAILURE):  # a command's own answer, printed already
        sys.exit(code)


def _said(error: BaseException) -> str:
    """An error that is none of normscope's, on one line; empty where the parser has shown its help."""
    if isinstance(usage := getattr(error, "format_message", None), Callable):  # the parser's own usage errors
        said = " ".join(str(usage()).split())
        asked = getattr(getattr(error, "ctx", None), "command_path", "normscope")
        return said and f"{said} See {asked} --help"
    if at(error):
        return f"your code raised {raised(error)}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or one_line(error)}"
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "storage size" in str(error):
        return "out of memory: give a smaller batch"
    if isinstance(error, SystemExit):
        return f"a module that was imported ended the process (exit {error.code})"
    return f"bug in normscope: {type(error).__name__}: {one_line(error)}; set NORMSCOPE_TRACEBACK=1 to see where"


def _fail(message: str, code: int, error: BaseException | None = None) -> NoReturn:
    if os.environ.get("NORMSCOPE_TRACEBACK") and error is not None and message:
        traceback.print_exception(error)
    if message:
        print(f"normscope: {' '.join(message.split())}", file=sys.stderr)
    with suppress(OSError):
        sys.stdout.flush()
        sys.exit(code)
    leave(code)


def _in_options(message: str) -> str:
    """A message of the library's, its arguments spelled as options: `workers=1` is --workers 1."""
    known = {parameter.name for command in command_line().commands.values() for parameter in command.params}

    def option(spelled: re.Match[str]) -> str:
        name, value = spelled["name"], spelled["value"]
        return f"--{name.replace('_', '-')}{f' {value}' if value else ''}" if name in known else spelled[0]

    return re.sub(r"`(?P<name>\w+)(=(?P<value>\w+))?`", option, message)


def _show_warning(message: Warning | str, *_: object) -> None:
    """One line, as all that normscope says."""
    print(f"normscope: {' '.join(str(message).split())}", file=sys.stderr)
