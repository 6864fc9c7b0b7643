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
    from normscope.check.check import check
    from normscope.check.diagnose import diagnose
    from normscope.check.stable_lr import stable_lr
    from normscope.data import ImageData, batches, load_data
    from normscope.errors import NormscopeError
    from normscope.figures.channel_moments import plot_channel_moments
    from normscope.figures.gradient_cancellation import plot_gradient_cancellation
    from normscope.figures.gradient_histogram import plot_gradient_histogram
    from normscope.figures.gradient_noise import plot_gradient_noise
    from normscope.figures.gradient_norms import plot_gradient_norms
    from normscope.figures.moments_along_step import plot_moments_along_step
    from normscope.figures.output_gradients import plot_output_gradients
    from normscope.figures.relative_loss import plot_relative_loss
    from normscope.figures.sharpness import plot_sharpness
    from normscope.figures.stable_lr import plot_stable_lr
    from normscope.nets import build_net
    from normscope.outcome import Outcome
    from normscope.probes.channel_moments import channel_moments
    from normscope.probes.gradient_cancellation import gradient_cancellation
    from normscope.probes.gradient_histogram import gradient_histogram
    from normscope.probes.gradient_noise import gradient_noise
    from normscope.probes.gradient_norms import gradient_norms
    from normscope.probes.moments_along_step import moments_along_step
    from normscope.probes.output_gradients import output_gradients
    from normscope.probes.relative_loss import relative_loss
    from normscope.probes.sharpness import sharpness
    from normscope.report.check import report
    from normscope.results import load, load_tree, save
    from normscope.surgery import with_init, with_norm
    from normscope.sweep.load_runs import load_runs
    from normscope.sweep.sweep import sweep
    from normscope.train.config import RunConfig
    from normscope.train.train import train
    from normscope.untouched import untouched
    from normscope.verdict import Verdict, judge

_HOME = {
    "ImageData": "data",
    "NormscopeError": "errors",
    "Outcome": "outcome",
    "RunConfig": "train.config",
    "Verdict": "verdict",
    "batches": "data",
    "build_net": "nets",
    "channel_moments": "probes.channel_moments",
    "check": "check.check",
    "diagnose": "check.diagnose",
    "gradient_cancellation": "probes.gradient_cancellation",
    "gradient_histogram": "probes.gradient_histogram",
    "gradient_noise": "probes.gradient_noise",
    "gradient_norms": "probes.gradient_norms",
    "judge": "verdict",
    "load": "results",
    "load_data": "data",
    "load_runs": "sweep.load_runs",
    "load_tree": "results",
    "moments_along_step": "probes.moments_along_step",
    "output_gradients": "probes.output_gradients",
    "plot_channel_moments": "figures.channel_moments",
    "plot_gradient_cancellation": "figures.gradient_cancellation",
    "plot_gradient_histogram": "figures.gradient_histogram",
    "plot_gradient_noise": "figures.gradient_noise",
    "plot_gradient_norms": "figures.gradient_norms",
    "plot_moments_along_step": "figures.moments_along_step",
    "plot_output_gradients": "figures.output_gradients",
    "plot_relative_loss": "figures.relative_loss",
    "plot_sharpness": "figures.sharpness",
    "plot_stable_lr": "figures.stable_lr",
    "relative_loss": "probes.relative_loss",
    "report": "report.check",
    "save": "results",
    "sharpness": "probes.sharpness",
    "stable_lr": "check.stable_lr",
    "sweep": "sweep.sweep",
    "train": "train.train",
    "untouched": "untouched",
    "with_init": "surgery",
    "with_norm": "surgery",
}
"""Where each public name lives."""

__all__ = [
    "ImageData",
    "NormscopeError",
    "Outcome",
    "RunConfig",
    "Verdict",
    "__version__",
    "batches",
    "build_net",
    "channel_moments",
    "check",
    "diagnose",
    "gradient_cancellation",
    "gradient_histogram",
    "gradient_noise",
    "gradient_norms",
    "judge",
    "load",
    "load_data",
    "load_runs",
    "load_tree",
    "moments_along_step",
    "output_gradients",
    "plot_channel_moments",
    "plot_gradient_cancellation",
    "plot_gradient_histogram",
    "plot_gradient_noise",
    "plot_gradient_norms",
    "plot_moments_along_step",
    "plot_output_gradients",
    "plot_relative_loss",
    "plot_sharpness",
    "plot_stable_lr",
    "relative_loss",
    "report",
    "save",
    "sharpness",
    "stable_lr",
    "sweep",
    "train",
    "untouched",
    "with_init",
    "with_norm",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'normscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"normscope.{_HOME[name]}"), name)
    # A folder of the same name, which can be called as well, was bound by the import: it stays.
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted(__all__)
