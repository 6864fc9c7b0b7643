"""Optimizers by name, with options as in "adamw,betas=0.9:0.95", or from somebody's own function or optimizer."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT as Params

from normscope.errors import InvalidConfig, NormscopeError, raised, unknown

OptimizerFactory = Callable[[Any, float], torch.optim.Optimizer]
"""`optimizer(params, lr)` gives a torch optimizer. A first argument called `model` is given the model, one called
`named_parameters` its trainable parameters with their names."""

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "momentum": lambda params, lr: torch.optim.SGD(params, lr=lr, momentum=0.9),
    "adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr=lr),
}
"""The commonest by name, with torch's defaults; "momentum" is SGD with momentum 0.9. Any other of `torch.optim` is
found by its class's name."""

WITHOUT_A_RATE = ("lbfgs", "sparseadam", "optimizer")
"""Of torch's: what asks for a function of the loss at every step, or for sparse gradients."""


def optimizer_factory(optimizer: str | OptimizerFactory | torch.optim.Optimizer) -> OptimizerFactory:
    """The factory of a name with its options, of an optimizer that exists, or the one given.

    >>> made = optimizer_factory("AdamW,betas=0.9:0.95")([nn.Parameter(torch.ones(1))], 1e-3)
    >>> made.defaults["betas"]
    (0.9, 0.95)

    Raises:
        InvalidConfig: an unknown name or option, or no optimizer at all.
    """
    if isinstance(optimizer, str):
        return _named(optimizer)
    if isinstance(optimizer, torch.optim.Optimizer):
        return _as(optimizer)
    if not callable(optimizer):
        raise InvalidConfig(
            f"optimizer is a {type(optimizer).__name__}: give a name ({', '.join(OPTIMIZERS)}, or of any class in "
            "torch.optim), an optimizer, or a function (params, lr) -> optimizer"
        )
    return optimizer


def own_lr(optimizer: Any) -> float | None:
    """The rate of an optimizer that exists; None of a name or a function."""
    return float(optimizer.param_groups[0]["lr"]) if isinstance(optimizer, torch.optim.Optimizer) else None


def own_state(optimizer: Any) -> dict[str, Any] | None:
    """The state_dict of an optimizer that has taken steps; None of any other."""
    return optimizer.state_dict() if isinstance(optimizer, torch.optim.Optimizer) and optimizer.state else None


def make_optimizer(
    factory: OptimizerFactory, model: nn.Module, lr: float, state: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """A fresh optimizer of all trainable parameters; with the `state` of a state_dict, but the rates of the factory."""
    try:
        made = factory(_what_it_asks_for(factory, model), lr)
    except (NormscopeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise InvalidConfig(f"optimizer(params, lr) raised {raised(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise InvalidConfig(f"optimizer(params, lr) gave a {type(made).__name__}, not a torch optimizer")
    if state is not None:
        try:
            made.load_state_dict({**copy.deepcopy(dict(state)), "param_groups": made.state_dict()["param_groups"]})
        except Exception as error:
            raise InvalidConfig(f"the optimizer's state does not fit: {raised(error)}") from error
    return made


def _what_it_asks_for(factory: OptimizerFactory, model: nn.Module) -> Any:
    try:
        first = next(iter(inspect.signature(factory).parameters), "")
    except (TypeError, ValueError):
        first = ""
    if first in ("model", "module", "net"):
        return model
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return named if first in ("named_parameters", "named_params") else [p for _, p in named]


def _named(text: str) -> OptimizerFactory:
    name, *given = [part.strip() for part in text.split(",")]
    options = dict(_option(text, part) for part in given)
    if name.lower() in OPTIMIZERS and not options:
        return OPTIMIZERS[name.lower()]
    classes: dict[str, Any] = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and key.lower() not in WITHOUT_A_RATE
    }
    if name.lower() == "momentum":
        name, options = "sgd", {"momentum": 0.9, **options}
    if name.lower() not in classes:
        raise unknown("optimizer", name, [*OPTIMIZERS, *(key for key in classes if key not in OPTIMIZERS)])
    made = classes[name.lower()]
    known = [key for key in inspect.signature(made).parameters if key not in ("params", "lr")]
    if "lr" in options:
        raise InvalidConfig(f"optimizer {text!r}: leave out its lr: rates are tried; one of your own is given apart")
    for key in options:
        if key not in known:
            raise unknown(f"option of {made.__name__}", key, known)

    def factory(params: Params, lr: float) -> torch.optim.Optimizer:
        return made(params, lr=lr, **options)

    return factory


def _option(text: str, part: str) -> tuple[str, Any]:
    key, equals, value = part.partition("=")
    if not equals:
        raise InvalidConfig(f"optimizer {text!r}: give options as name=value, as in adamw,betas=0.9:0.95")
    values = [_value(text, one) for one in value.split(":")]
    return key.strip(), values[0] if len(values) == 1 else tuple(values)


def _value(text: str, value: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if value.strip().lower() in words:
        return words[value.strip().lower()]
    try:
        return float(value)
    except ValueError as error:
        raise InvalidConfig(f"optimizer {text!r}: {value!r} is no number, true, false or none") from error


def _as(optimizer: torch.optim.Optimizer) -> OptimizerFactory:
    """Others of its kind and options, with its groups where it is the model's own; their rates keep their ratios."""
    own = float(optimizer.param_groups[0]["lr"])
    groups = [dict(group) for group in optimizer.param_groups]
    options = [key for key in inspect.signature(type(optimizer)).parameters if key not in ("params", "lr")]

    def factory(params: Params, lr: float) -> torch.optim.Optimizer:
        mine = {id(p) for group in groups for p in group["params"]}
        same = all(id(p) in mine for p in params)
        if not same and len(groups) > 1:
            raise InvalidConfig(
                "the optimizer has groups of another model's parameters: give the function that makes it"
            )
        chosen = groups if same else [{**groups[0], "params": list(params)}]
        share = lr / own if own else 1.0
        made = [
            {key: group[key] for key in ("params", *options) if key in group}
            | {"lr": group["lr"] * share if own else lr}
            for group in chosen
        ]
        kind: Any = type(optimizer)
        return kind(made, lr=lr)

    vars(factory)["given"] = optimizer
    return factory


def foreign_parameters(factory: OptimizerFactory, model: nn.Module, lr: float) -> int:
    """How many of an optimizer's parameters are not the model's: of the one given, where the factory stands for one."""
    given = getattr(factory, "given", None)
    made = make_optimizer(factory, model, lr) if given is None else given
    own = {id(p) for p in model.parameters()}
    return sum(id(p) not in own for group in made.param_groups for p in group["params"])
