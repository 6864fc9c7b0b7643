"""Powers of ten on logarithmic axes as plain text, for pictures that are written many at a time.

Matplotlib typesets 10⁻³ as mathematics, which it parses once to measure and once to draw: a tenth of a report's time.
"""

import re
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogFormatterMathtext

_MATHEMATICS = re.compile(r"\$\\mathdefault\{(.*)\}\$")
_EXPONENT = re.compile(r"\^\{([-\d]+)\}")
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain_powers(figure: Figure) -> None:
    """Give the logarithmic axes of a figure labels of plain text: the same ticks, the same numbers."""
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            major, minor = axis.get_major_formatter(), axis.get_minor_formatter()
            if isinstance(major, LogFormatterMathtext):
                axis.set_major_formatter(_Plain(major))
            if isinstance(minor, LogFormatterMathtext):
                axis.set_minor_formatter(_Plain(minor))


def as_plain(label: str) -> str:
    """A label of matplotlib's logarithmic axes without its mathematics: 2×10⁻³; another text as it is."""
    found = _MATHEMATICS.fullmatch(label)
    if found is None:
        return label
    text = found[1].replace(r"\times", "×")
    return _EXPONENT.sub(lambda exponent: exponent[1].translate(_RAISED), text).replace("-", "\N{MINUS SIGN}")


class _Plain(Formatter):
    """What another formatter says, as plain text."""

    def __init__(self, other: LogFormatterMathtext) -> None:
        self._other = other

    def set_locs(self, locs: Sequence[float]) -> None:
        self._other.set_locs(locs)  # pyright: ignore[reportArgumentType]

    def __call__(self, x: float, pos: int | None = None) -> str:
        return as_plain(self._other(x, pos))
