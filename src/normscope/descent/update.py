"""An optimizer's own update of a gradient, as the direction of a step: u with θ + lr · u, fresh or as it stands.

For SGD u = −∇ℓ_B, for Adam nearly −sign ∇ℓ_B; with momentum, the buffer is in it; with weight decay, the decay. Updates
are taken as proportional to the rate, as they are for all of torch's optimizers but LBFGS, Rprop and ASGD.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normscope.descent.optimizers import OptimizerFactory, make_optimizer, optimizer_factory
from normscope.descent.step_line import Direction
from normscope.errors import InvalidConfig, NormscopeError, raised


def update_of(optimizer: str | OptimizerFactory | torch.optim.Optimizer, model: nn.Module) -> Direction:
    """The direction of an optimizer's next update of the model, for `step_line`.

    Args:
        optimizer: a name or a factory `(params, lr) -> optimizer` for the first update of a fresh one; or an optimizer
            of this model, for the update that it would make now, with its momentum, its moments and its own weight
            decay. It is copied, and stays as it is. Its groups keep the ratios of their rates: the step size is the
            largest of these.

    Raises:
        InvalidConfig: an unknown name, an optimizer of other parameters, or one that cannot be stepped.
    """
    source = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer_factory(optimizer)

    def direction(parameters: list[nn.Parameter], starts: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        with readable_step():
            if isinstance(source, torch.optim.Optimizer):
                stepped = _copied(source, parameters)
            else:
                stepped = make_optimizer(source, model, 1.0)
            set_gradients(stepped, parameters, gradients)
            stepped.step()
        return [p.detach() - start for p, start in zip(parameters, starts, strict=True)]

    return direction


def set_gradients(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gradients: list[Tensor]
) -> None:
    """Put each gradient where the optimizer looks for it, as a tensor of its own in the parameter's memory format, and
    take it off the list; the optimizer's other parameters have none."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone() if gradient.is_sparse else torch.empty_like(parameter).copy_(gradient)
    gradients.clear()


def _copied(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer with a state of its own, at rate 1, for those of its parameters that are to be moved; without the
    hooks that somebody hung on its step."""
    chosen = {id(p) for p in parameters}
    held: dict[int, Any] = {id(p): p for group in optimizer.param_groups for p in group["params"]}
    if chosen.isdisjoint(held):
        raise InvalidConfig("the optimizer holds no parameter that the loss depends on: give this model's own")
    twin = copy.deepcopy(optimizer, held)  # whose parameters are the same
    rates = [float(group.get("lr", 1.0)) for group in twin.param_groups]
    largest = max(rates) or 1.0
    for group, rate in zip(twin.param_groups, rates, strict=True):
        share = rate / largest if max(rates) else 1.0
        group["params"] = [p for p in group["params"] if id(p) in chosen]
        group["lr"] = torch.full_like(group["lr"], share) if isinstance(group.get("lr"), Tensor) else share
    return twin


@contextmanager
def readable_step() -> Iterator[None]:
    """Say in one line what the optimizer's step raised."""
    try:
        yield
    except (NormscopeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise InvalidConfig(f"the optimizer's step raised {raised(error)}") from error
