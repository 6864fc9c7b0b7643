"""What cannot be changed safely, and why."""

import re
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from normscope.errors import InvalidModel, one_line
from normscope.nets.attachment import INPUT_NORM, OUTPUT_NORM, is_attached
from normscope.surgery.calls import Calls

_WRAPPERS = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"}
_QUANTIZED = ("torch.ao.nn.", "torch.ao.quantization.", "torchao.", "bitsandbytes.")
_SEVERAL_MAPS_IN_ONE = re.compile(
    r".*qkv.*|.*query_key_value.*|c_attn|in_proj|(to_|w_?)?kv(_proj)?|gate_up_proj", re.IGNORECASE
)


def changeable_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a model that can be changed.

    Raises:
        InvalidModel: what is no module; compiled, scripted, quantized, fused or wrapped for several devices, any part
            of it; not initialized yet; cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"a model is a torch.nn.Module, not a {type(model).__name__}")
    for path, module in model.named_modules():
        reason = _frozen_form(module)
        if reason is not None:
            raise InvalidModel(f"{f'module {path!r}' if path else 'the model'} {reason}")
    # Torch's hooks compute them anew in each forward pass; until then the copy has numbers without a graph.
    recomputed = [(m, name) for m in model.modules() for name in _recomputed(m)]
    tensors = [getattr(m, name) for m, name in recomputed]
    try:
        return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in tensors})
    except Exception as error:  # whatever a module of somebody's own raises in __deepcopy__ or __reduce__
        raise InvalidModel(f"{type(model).__name__} cannot be copied: {one_line(error)}") from error


def _frozen_form(module: nn.Module) -> str | None:
    """Why nothing may be changed in a model with this module, if so."""
    name, home = type(module).__name__, f"{type(module).__module__}."
    if name == "OptimizedModule" or module._compiled_call_impl is not None:
        return "is compiled, and would go on running what was compiled: change the model first, then compile it"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a TorchScript module, whose code is fixed: change the model first, then script it"
    wrapper = next((cls.__name__ for cls in type(module).__mro__ if cls.__name__ in _WRAPPERS), None)
    if wrapper:
        return f"is wrapped in {wrapper}: change the model inside (.module), then wrap it again"
    if home.startswith(_QUANTIZED) and "intrinsic" in home:
        return f"({name}) is fused: its layers and norms are one operation, so change the model before fusing it"
    if home.startswith(_QUANTIZED):
        return f"({name}) is quantized: its numbers are calibrated for what it is, so change the model before"
    computed = [k for k, v in vars(module).items() if isinstance(v, Tensor) and v.grad_fn is not None]
    stored = next((name for name in computed if name not in _recomputed(module)), None)
    if stored is not None:
        return (
            f"holds a tensor {stored!r} that is computed from others, which cannot be copied: "
            "an activation that was kept, say; remove that first"
        )
    if any(nn.parameter.is_lazy(p) for p in [*module.parameters(recurse=False), *module.buffers(recurse=False)]):
        return f"({name}) has no shape yet: call the model once on a batch first"
    return None


def _recomputed(module: nn.Module) -> set[str]:
    """The tensors of a module that torch's older weight norm, spectral norm or pruning computes before each call."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if _is_torchs(hook)]
    names = {str(getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)) for hook in hooks}
    return {name for name in names if isinstance(vars(module).get(name), Tensor)}


def _is_torchs(hook: object) -> bool:
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


def is_layer(module: nn.Module) -> bool:
    """Whether a module is of a kind that a norm may stand behind: convolutions, also transposed, linear maps, recurrent
    nets, and convolutions of somebody's own.

    Their own, of graphs for example, are known by a class called ...Conv (or ...Conv1D) with weights of two dimensions
    or more and none of torch's layers or norms inside.
    """
    if isinstance(module, nn.Linear | _ConvNd | nn.RNNBase):
        return True
    if not re.search(r"Conv(\dd)?$", type(module).__name__, re.IGNORECASE):
        return False
    torchs = any(isinstance(part, nn.Linear | _ConvNd | nn.RNNBase | _NormBase) for part in module.modules())
    return not torchs and any(parameter.ndim > 1 for parameter in module.parameters())


def why_left_out(model: nn.Module, path: str, layer: nn.Module, calls: Calls | None) -> str | None:
    """Why a norm at a layer would do nothing or break what the layer is part of, if so.

    Such layers are left out where a wildcard or "everywhere" finds them, and refused where they are named.
    """
    parent_path, _, name = path.rpartition(".")
    if isinstance(model.get_submodule(parent_path), nn.MultiheadAttention):
        return "is part of a fused attention, which reads its weight and never calls it"
    if _SEVERAL_MAPS_IN_ONE.fullmatch(name):
        return "is several maps fused in one (queries, keys and values): a norm would mix them"
    if calls is not None and layer not in calls.shapes:
        return "is never called on this batch"
    return None


def has_weight_of_its_own(layer: nn.Module) -> bool:
    """Whether a layer's weight is a parameter, and not computed from others by weight norm or the like."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


def why_unsafe(layer: nn.Module, tied_to: str | None) -> str | None:
    """Why no norm may be put at a layer, if so; `tied_to` is the path of another owner of its weight, where that is a
    reason."""
    ours = [getattr(layer, name) for name in (OUTPUT_NORM, INPUT_NORM) if is_attached(layer, name)]
    if isinstance(layer, nn.Linear | _ConvNd):
        own = [name for name, child in layer.named_children() if child not in ours and name != "parametrizations"]
        if own:
            return f"is fused: it holds {', '.join(own)} and not just a weight"
        if not has_weight_of_its_own(layer) and not is_parametrized(layer) and not _recomputed(layer):
            return "has a weight that somebody computes from others: remove that first"
    for weight in [parameter for parameter in layer.parameters(recurse=False) if parameter.ndim > 1]:
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            return f"has a weight of type {type(weight).__name__}, {weight.dtype}: quantized or spread over devices"
    if any(hasattr(layer, name) and not is_attached(layer, name) for name in (OUTPUT_NORM, INPUT_NORM)):
        return f"already has an attribute called {OUTPUT_NORM} or {INPUT_NORM}"
    if tied_to is not None:
        return f"is tied to {tied_to!r}, where the weight's scale counts; behind a norm it would not: untie them first"
    return None


def why_mixed(calls: int | None, paths: list[str]) -> str | None:
    """Why one batch norm at a module would serve several calls with statistics of their own, if so.

    `calls` counts them, where that is known; else the paths that the module is registered under must do.
    """
    if calls is not None and calls > 1:
        return f"is called {calls} times: one batch norm would mix their statistics; choose 'group' or 'layer'"
    if calls is None and len(paths) > 1:
        return (
            f"is also {paths[1]!r}: a batch norm would mix two calls' statistics; give a batch to see if there are two"
        )
    return None
