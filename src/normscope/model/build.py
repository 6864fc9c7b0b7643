"""A fresh model from somebody's own function: `build(seed)`, or `build()`."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from normscope.errors import InvalidModel, NormscopeError, raised


def build_model(build: Callable[..., Any], seed: int) -> nn.Module:
    """`build(seed)`, or `build()` where it takes no seed, with torch's generators at `seed`; they are left as found.

    A parameter is taken for the seed if it is called so, or if it is the only one without a default.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = build(**{"seed": seed}) if takes_seed_by_name(build) else build(*[seed] * num_required(build))
        except NormscopeError:
            raise
        except Exception as error:
            raise InvalidModel(f"build raised {raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"build(seed) gave a {type(model).__name__}, not an nn.Module")
    return model


def takes_seed_by_name(build: Callable[..., Any]) -> bool:
    """Whether there is a parameter called `seed` that can be given by name."""
    parameter = _parameters(build).get("seed")
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


def num_required(build: Callable[..., Any]) -> int:
    """How many positional parameters have no default: none, or one that is the seed."""
    required = [
        p
        for p in _parameters(build).values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        names = ", ".join(p.name for p in required)
        raise InvalidModel(f"build needs {names}: give a function that takes the seed alone")
    return len(required)


def _parameters(build: Callable[..., Any]) -> Any:
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError):
        return {}
