"""Initializations by name: `init_(model, "xavier_uniform", seed=0)`.

A layer is a module that owns a parameter called weight of two dims or more (convolutions, linear layers,
embeddings, attention); norm layers are none. The output layer is the last of them in the order of
registration, and is left as it is, because the scale of the first logits is a question of its own.

Each layer draws from a generator of its own, seeded by the seed and the layer's name. So layers of the same
name and shape get the same bits in two models, whatever else differs between these: with and without norms,
with projections or padding, deep or shallow. Weights are drawn on the CPU in float32, so they do not depend
on the device.
"""

from __future__ import annotations

import hashlib
import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from normscope.errors import InvalidConfig, InvalidModel, unknown
from normscope.nets.names import INITS
from normscope.nets.residual_tails import declared_tails, tail_tensors


def init_(
    model: nn.Module,
    kind: str,
    *,
    seed: int | None = None,
    scale: float = 1.0,
    keep_output_layer: bool = True,
) -> nn.Module:
    """Draw the weights of `model` anew, in place, and return it.

    - `xavier_uniform`, `xavier_normal`: variance 2 / (fan_in + fan_out), gain 1.
    - `kaiming_normal`: variance 2 / fan_in, made for ReLU.
    - `orthogonal`: a kernel flattened to (out, in · positions) has orthonormal rows or columns.
    - `zero_residual`: `xavier_uniform`, and then weight and bias of the last layer or norm of each residual
      branch are zero, so that the branch adds nothing at first. A block names that child in an attribute
      `residual_tail`.
    - `default`: what torch does on construction (`reset_parameters`), biases included.

    All but `default` set the layers' biases to zero. `scale` multiplies the weights after they are drawn.
    Norm layers stay as they are (but for `zero_residual`). With `keep_output_layer` the output layer does
    too, and so do weights tied to it. Without a `seed` one is taken from torch's global generator; with
    one, that generator is not touched.

    Raises `InvalidConfig` for an unknown name, a scale that is not positive and finite, or `zero_residual`
    on a model without residual tails; `InvalidModel` for a model whose weights cannot be set (lazy,
    parametrized, no layers) or whose declared tail is missing or owns no weight.
    """
    if kind not in INITS:
        raise unknown("init", kind, INITS)
    if not (math.isfinite(scale) and scale > 0):
        raise InvalidConfig(f"scale must be positive and finite, not {scale}")
    layers = weighted_layers(model)
    if not layers:
        raise InvalidModel("no layer of this model has a weight of two dims or more: nothing to initialize")
    zeroed: list[Tensor] = []
    if kind == "zero_residual":
        zeroed = [tensor for tail in declared_tails(model) for tensor in tail_tensors(model, tail)]
        if not zeroed:
            raise InvalidConfig("init 'zero_residual' needs blocks that name their residual_tail: this model has none")
    kept: set[int] = set()
    if keep_output_layer:
        _, output = layers.popitem()
        kept = {id(parameter) for parameter in output.parameters(recurse=False)}
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu"))
    for path, layer in layers.items():
        fresh = _fresh(path, layer, kind, _layer_seed(seed, path))
        with torch.no_grad():
            for name, parameter in layer.named_parameters(recurse=False):
                if id(parameter) not in kept and name in fresh:
                    parameter.copy_(fresh[name] * scale if _is_weight(name, parameter) else fresh[name])
    for tensor in zeroed:
        nn.init.zeros_(tensor)
    return model


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> module for each layer of `model`, in the order of registration."""
    layers = {}
    for path, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            continue  # over several dims their weight has several too
        own = dict(module.named_parameters(recurse=False))
        if any(is_lazy(parameter) for parameter in own.values()):
            raise InvalidModel(f"layer {path!r} has no shape yet: pass one batch through the model first")
        # the older forms of weight norm, spectral norm and pruning rename the weight
        if is_parametrized(module) or any(name.endswith(("_g", "_v", "_orig")) for name in own):
            raise InvalidModel(f"the weight of layer {path!r} is computed from others: remove that first")
        if any(_is_weight(name, parameter) for name, parameter in own.items()):
            layers[path] = module
    return layers


def _is_weight(name: str, parameter: Tensor) -> bool:
    return "weight" in name and parameter.dim() >= 2


def _layer_seed(seed: int, path: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "big")


def _fresh(path: str, layer: nn.Module, kind: str, seed: int) -> dict[str, Tensor]:
    """New values for the parameters that `layer` itself owns, float32 on the CPU."""
    if kind == "default":
        return _torch_default(path, layer, seed)
    generator = torch.Generator().manual_seed(seed)
    fresh = {}
    for name, parameter in layer.named_parameters(recurse=False):
        if _is_weight(name, parameter):
            weight = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
            fresh[name] = _drawn(weight, kind, generator, transposed=isinstance(layer, _ConvTransposeNd))
        elif "bias" in name:
            fresh[name] = torch.zeros(parameter.shape, device="cpu")
    if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
        fresh["weight"][layer.padding_idx] = 0
    return fresh


def _drawn(weight: Tensor, kind: str, generator: torch.Generator, *, transposed: bool) -> Tensor:
    if kind == "kaiming_normal":
        # torch counts fan_in along dim 1, where a transposed convolution has its outputs
        mode = "fan_out" if transposed else "fan_in"
        return nn.init.kaiming_normal_(weight, mode=mode, nonlinearity="relu", generator=generator)
    if kind == "orthogonal":
        return nn.init.orthogonal_(weight, generator=generator)
    if kind == "xavier_normal":
        return nn.init.xavier_normal_(weight, generator=generator)
    return nn.init.xavier_uniform_(weight, generator=generator)


def _torch_default(path: str, layer: nn.Module, seed: int) -> dict[str, Tensor]:
    copy = deepcopy(layer).to("cpu", torch.float32)
    reset = getattr(copy, "reset_parameters", None) or getattr(copy, "_reset_parameters", None)
    if reset is None:
        raise InvalidModel(f"layer {path!r} ({type(layer).__name__}) has no reset_parameters: no default known")
    # reset_parameters takes no generator; torch.manual_seed would reseed the GPUs' generators too
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        reset()
    return {name: parameter.detach() for name, parameter in copy.named_parameters(recurse=False)}
