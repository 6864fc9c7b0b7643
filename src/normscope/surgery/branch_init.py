"""Starts of residual branches that bring learned numbers with them, in a copy that is its own: SkipInit and Fixup."""

import torch
from torch import Tensor, nn

from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.batch import Batch
from normscope.model.loss import LossFn
from normscope.nets.attachment import INPUT_SCALAR, OUTPUT_NORM, OUTPUT_SCALAR, attach_scalars, is_attached
from normscope.nets.residual_tails import declared_tails, tail_tensors
from normscope.surgery.calls import calls_of, output_layer, owns_layer_weight
from normscope.surgery.places import existing_norms
from normscope.surgery.tail_search import found_branches, found_tails

SAME = {"rezero": "skipinit"}
"""Other names of the same equation."""


class LearnedScalar(nn.Module):
    """y = scale · x + bias with two learned numbers, or one of them; None leaves one out."""

    def __init__(self, scale: float | None, bias: float | None = None) -> None:
        super().__init__()
        self.scale = None if scale is None else nn.Parameter(torch.tensor([scale]))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias]))

    def forward(self, input: Tensor) -> Tensor:
        """The shape of the input."""
        scaled = input if self.scale is None else input * self.scale
        return scaled if self.bias is None else scaled + self.bias


def check_branch_init(kind: str, batch: Batch) -> None:
    """Raise InvalidConfig for another name of one of these, and for Fixup without a batch."""
    if kind in SAME:
        raise InvalidConfig(
            f"init {kind!r} is {SAME[kind]!r}: both multiply a branch by a learned number that starts at 0. ReZero "
            "keeps a model's norms; SkipInit does without: take them out by with_norm(model, 'none')"
        )
    if kind == "fixup" and batch is None:
        raise InvalidConfig("init 'fixup' needs a batch, so that the layers of each residual branch can be seen")


def skip_init_(model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> None:
    """Multiply each residual branch by a learned number that starts at 0: x + α · f(x), α = 0.

    SkipInit (De and Smith 2020) in a network without norms; ReZero (Bachlechner et al. 2021) in one that keeps them.
    """
    for tail in declared_tails(model) or found_tails(model, batch, loss_fn):
        at = tail.get_submodule(OUTPUT_NORM) if is_attached(tail, OUTPUT_NORM) else tail
        _refuse_twice(model, at, "skipinit")
        attach_scalars(at, behind=_like(LearnedScalar(0.0), at))


def fixup_(model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> None:
    """Fixup (Zhang, Dauphin and Ma 2019), from weights drawn by He's rule, in a network of L residual branches:

    1. the output layer and the last layer of each branch start at zero;
    2. the other layers of a branch of m layers have their weights multiplied by L^(−1/(2m − 2));
    3. a learned number is added, 0 at first, to the input of each layer of a branch and to its output, which is what an
       activation behind it sees; and the end of each branch is multiplied by one, 1 at first.

    Raises:
        InvalidConfig: a network that has norms, which Fixup replaces.
    """
    norms = existing_norms(model)
    if norms:
        raise InvalidConfig(
            f"init 'fixup' is for networks without norms, and this one has {next(iter(norms))!r}: take them out first, "
            "by with_norm(model, 'none')"
        )
    paths = {module: path for path, module in model.named_modules()}
    branches = found_branches(model, batch, loss_fn, init="fixup")
    zeroed = [tensor for tail in branches for tensor in tail_tensors(model, tail)]
    output = output_layer(model, calls_of(model, batch, loss_fn))[1]
    zeroed += [] if output is None else list(output.parameters(recurse=False))
    with torch.no_grad():
        for tail, inside in branches.items():
            layers = [layer for layer in inside if owns_layer_weight(paths[layer], layer)]
            for layer in layers:
                _refuse_twice(model, layer, "fixup")
                if layer is not tail:
                    for name, parameter in layer.named_parameters(recurse=False):
                        if "weight" in name:
                            parameter.mul_(len(branches) ** (-1 / (2 * len(layers) - 2)))
                behind = LearnedScalar(1.0 if layer is tail else None, 0.0)
                attach_scalars(layer, in_front=_like(LearnedScalar(None, 0.0), layer), behind=_like(behind, layer))
    for tensor in zeroed:
        nn.init.zeros_(tensor)


def _like(scalar: nn.Module, layer: nn.Module) -> nn.Module:
    own = next((parameter for parameter in layer.parameters() if parameter.is_floating_point()), None)
    return scalar.train(layer.training) if own is None else scalar.to(own.device, own.dtype).train(layer.training)


def _refuse_twice(model: nn.Module, at: nn.Module, kind: str) -> None:
    if hasattr(at, OUTPUT_SCALAR) or hasattr(at, INPUT_SCALAR):
        path = next(path for path, module in model.named_modules() if module is at)
        raise InvalidModel(f"init {kind!r}: {path!r} has an attribute called {OUTPUT_SCALAR} or {INPUT_SCALAR} already")
