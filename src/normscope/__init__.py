"""normscope: ask a network why it cannot take a larger learning rate, and what normalization would buy it.

>>> import normscope as ns
>>> dataset = ns.relative_loss(model, (images, labels))
>>> ns.plot_relative_loss(dataset)

The names below are found on first use, so that importing normscope costs little beside importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from normscope.version import __version__

if TYPE_CHECKING:
    from normscope.data import ImageData, batches, load_data
    from normscope.errors import NormscopeError
    from normscope.figures.channel_moments import plot_channel_moments
    from normscope.figures.relative_loss import plot_relative_loss
    from normscope.nets import build_net
    from normscope.outcome import Outcome
    from normscope.probes.channel_moments import channel_moments
    from normscope.probes.relative_loss import relative_loss
    from normscope.results import load, save
    from normscope.untouched import untouched
    from normscope.verdict import Verdict, judge

_HOME = {
    "ImageData": "data",
    "NormscopeError": "errors",
    "Outcome": "outcome",
    "Verdict": "verdict",
    "batches": "data",
    "build_net": "nets",
    "channel_moments": "probes.channel_moments",
    "judge": "verdict",
    "load": "results",
    "load_data": "data",
    "plot_channel_moments": "figures.channel_moments",
    "plot_relative_loss": "figures.relative_loss",
    "relative_loss": "probes.relative_loss",
    "save": "results",
    "untouched": "untouched",
}
"""Where each public name lives."""

__all__ = [
    "ImageData",
    "NormscopeError",
    "Outcome",
    "Verdict",
    "__version__",
    "batches",
    "build_net",
    "channel_moments",
    "judge",
    "load",
    "load_data",
    "plot_channel_moments",
    "plot_relative_loss",
    "relative_loss",
    "save",
    "untouched",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'normscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"normscope.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
