"""Optimizers by name, or from somebody's own function `(params, lr) -> optimizer`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normscope.errors import InvalidConfig, NormscopeError, raised, unknown

OptimizerFactory = Callable[[Any, float], torch.optim.Optimizer]
"""`optimizer(params, lr)` gives a torch optimizer."""

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr),
}
"""Optimizers by name, with torch's defaults; "momentum" is SGD with momentum 0.9."""


def optimizer_factory(optimizer: str | OptimizerFactory) -> OptimizerFactory:
    """The factory of a name, or the one given."""
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise unknown("optimizer", optimizer, OPTIMIZERS)
        return OPTIMIZERS[optimizer]
    if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
        raise InvalidConfig(
            f"optimizer is a {type(optimizer).__name__}: give a name ({', '.join(OPTIMIZERS)}) or a function "
            "(params, lr) -> optimizer, since every try starts with a fresh one"
        )
    return optimizer


def make_optimizer(factory: OptimizerFactory, model: nn.Module, lr: float) -> torch.optim.Optimizer:
    """A fresh optimizer of all trainable parameters."""
    try:
        made = factory([p for p in model.parameters() if p.requires_grad], lr)
    except (NormscopeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise InvalidConfig(f"optimizer(params, lr) raised {raised(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InvalidConfig(f"optimizer(params, lr) gave a {type(made).__name__}, not a torch optimizer")
    return made
