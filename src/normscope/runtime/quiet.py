"""Whether progress is shown: a switch of its own, so that to turn it loads nothing."""

_quiet = False


def be_quiet(quiet: bool = True) -> None:
    """Show no progress from now on, or show it again."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether no progress is to be shown."""
    return _quiet
