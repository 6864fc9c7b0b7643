"""Where tables are printed: as wide as the terminal, or wide enough for a file."""

from rich.console import Console

FILE_WIDTH = 160


def console() -> Console:
    """A console for the output stream."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=FILE_WIDTH)
