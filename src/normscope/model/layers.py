"""Which calls of a model are watched, in execution order, and where their channels are.

A *layer* here is one call of a module that owns a weight of two dimensions or more: a convolution, a linear map, an
embedding, attention's input map, or anything of that kind somebody wrote themselves; but not a call that contains other
layers, such as that of a whole network with a table of positions of its own. It is named by its `named_modules` path; a
module's second call is `path#2`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from normscope.errors import InvalidModel
from normscope.model.output import first_tensor

SHORTCUT_NAMES = ("shortcut", "downsample", "skip")
"""A path with one of these parts lies beside the main path: such layers have no depth."""


class LayerCall(NamedTuple):
    """One call of a layer."""

    name: str
    """The module's path; of its second call `path#2`."""
    module: nn.Module
    inputs: tuple[Any, ...]
    named_inputs: dict[str, Any]
    result: Any
    """What the module gave."""
    output: Tensor
    """The first tensor in it."""


OnCall = Callable[[LayerCall], Any]
"""What it returns takes the place of the call's result; None leaves it."""

OnInputs = Callable[[tuple[Any, ...]], tuple[Any, ...] | None]


def watched_modules(model: nn.Module, layers: str | Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The modules to watch by path, in the order of registration.

    Args:
        layers: None for all that own a weight of two dimensions or more; else one or several shell patterns
            (`"layer1.*.conv2"`), matched against the path of every module.

    Raises:
        InvalidModel: where nothing matches; the message says what there is.
    """
    named = {path: module for path, module in model.named_modules() if path or module is model}
    parametrized = [module for module in named.values() if is_parametrized(module)]
    inner = {part for module in parametrized for part in module.get_submodule("parametrizations").modules()}
    weighted = {path: module for path, module in named.items() if owns_weight(module) and module not in inner}
    if layers is None:
        if not weighted:
            raise InvalidModel(
                f"{type(model).__name__} has no layer with a weight of two dimensions: name layers by pattern"
            )
        return weighted
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in named):
            some = ", ".join(list(weighted)[:3])
            raise InvalidModel(
                f"no layer matches {pattern!r}; this model has {some}, ... ({len(weighted)} in all): "
                "see `normscope layers MODEL`"
            )
    return {path: module for path, module in named.items() if any(fnmatchcase(path, p) for p in patterns)}


def owns_weight(module: nn.Module) -> bool:
    """Whether a module itself holds a weight of two dimensions or more."""
    return any(p.ndim >= 2 for p in own_parameters(module))


def own_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a module itself holds, with those that its parametrized weights are computed from."""
    computed_from = module.get_submodule("parametrizations").parameters() if is_parametrized(module) else ()
    return [*module.parameters(recurse=False), *computed_from]


@contextmanager
def record_calls(
    model: nn.Module,
    on_call: OnCall,
    layers: str | Sequence[str] | Mapping[str, nn.Module] | None = None,
    *,
    before: OnInputs | None = None,
) -> Iterator[None]:
    """Call `on_call` for every watched call, in execution order, before anything after the module can change its output
    in place. Outputs that are tuples or mappings are seen by their first tensor; single numbers and integers have no
    channels and are passed over. A call that contains other layers is watched only where a pattern names it.

    Args:
        layers: see `watched_modules`; or what that gave.
        before: called with the positional inputs of every watched module, also of those that contain others; what it
            returns takes their place.
    """
    calls: dict[nn.Module, int] = {}
    open_calls: list[int] = []

    def enter(_module: nn.Module, _inputs: object) -> None:
        open_calls.append(sum(calls.values()))

    def hook_for(path: str, container: bool) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, named: Any, result: Any) -> Any:
            contains_layers = container and sum(calls.values()) > open_calls.pop()
            output = first_tensor(result)
            if output is None or not output.ndim or not output.is_floating_point() or contains_layers:
                return None
            calls[module] = calls.get(module, 0) + 1
            name = path if calls[module] == 1 else f"{path}#{calls[module]}"
            return on_call(LayerCall(name, module, inputs, named, result, output))

        return hook

    # In front of the hooks that a model has already: what is watched is the module's own output, as a convolution's in
    # front of the norm that `with_norm` hung behind it.
    watched = layers if isinstance(layers, Mapping) else watched_modules(model, layers)
    handles = []
    try:
        for path, module in watched.items():
            inner = {part for part in module.modules() if part is not module} if layers is None else set()
            container = not inner.isdisjoint(watched.values())
            if container:
                handles.append(module.register_forward_pre_hook(enter))
            if before is not None:
                handles.append(module.register_forward_pre_hook(lambda _, inputs: before(inputs)))
            handles.append(module.register_forward_hook(hook_for(path, container), prepend=True, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def running(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the modules that run at the moment, the innermost last."""
    inside: list[str] = []
    handles = []
    for path, module in model.named_modules():

        def enter(_module: nn.Module, _inputs: object, path: str = path) -> None:
            inside.append(path)

        def leave(_module: nn.Module, _inputs: object, _output: object) -> None:
            inside.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield inside
    finally:
        for handle in handles:
            handle.remove()


def channel_dim(module: nn.Module, output: Tensor) -> int:
    """The dimension of `output` that runs over channels.

    A kernel (a weight of three dimensions or more, its first as long as the output's) has its channels in front of its
    spatial dimensions, as have the norms that count channels, and layer norm over images; linear maps, embeddings,
    attention and other layer norms have them last. What owns no weight
    follows the shape: last for (batch, channels) and (batch, tokens, features), else dimension 1. A module that says so
    itself, by an attribute `channel_dim` as those of `normscope.nets.norms` have, is believed.
    """
    declared = getattr(module, "channel_dim", None)
    if isinstance(declared, int):
        return declared % output.ndim
    normalized = getattr(module, "normalized_shape", None)
    if normalized is not None:
        return output.ndim - (len(normalized) if len(normalized) > 2 else 1)
    kernel = next((p for p in own_parameters(module) if p.ndim >= 3), None)
    if kernel is not None and output.ndim >= kernel.ndim - 1:
        dim = output.ndim - (kernel.ndim - 1)
        if output.shape[dim] in (kernel.shape[0], getattr(module, "out_channels", None)):
            return dim
    if hasattr(module, "num_features") or hasattr(module, "num_channels"):
        return 1
    if owns_weight(module) or output.ndim <= 3:
        return output.ndim - 1
    return 1


def depths(names: Sequence[str]) -> list[float]:
    """The place of each call on the main path, counted from 1 in execution order; NaN for calls on a shortcut."""
    place, result = 0, []
    for name in names:
        beside = any(part in SHORTCUT_NAMES for part in name.split("#")[0].split("."))
        place += not beside
        result.append(float("nan") if beside else float(place))
    return result
