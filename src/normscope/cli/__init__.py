"""The command line: a thin shell over the public API, one file per command."""

from normscope.cli.app import main

__all__ = ["main"]
