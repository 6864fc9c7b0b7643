"""Norms taken out, put in and swapped, on any `nn.Module`: `with_norm(model, "batch")`."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from normscope.errors import InvalidConfig, InvalidModel, NormscopeError, unknown
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.nets.attachment import OUTPUT_NORM, is_attached
from normscope.nets.batch_norm_parts import PARTS
from normscope.nets.norms import NORMS
from normscope.nets.weight_norms import WEIGHT_NORMS
from normscope.surgery.calls import Calls, calls_of, output_layer
from normscope.surgery.operation import Operation
from normscope.surgery.places import existing_norms
from normscope.surgery.refusals import changeable_copy, is_layer, why_left_out
from normscope.surgery.weight_norm import check_place, norm_to_place, norm_weights

PLACES: tuple[str, ...] = ("swap", "everywhere", "final")
"""What `where` may say besides shell patterns."""

KINDS: tuple[str, ...] = (*NORMS, *PARTS, *WEIGHT_NORMS)
"""What may be put in."""


@instrument
def with_norm(
    model: nn.Module,
    kind: str,
    where: str | Sequence[str] | None = None,
    *,
    batch: Batch = None,
    loss_fn: LossFn | None = None,
) -> nn.Module:
    """A copy of `model` with other norms; the model itself stays untouched.

    Args:
        kind: a name of `normscope.nets.norms`: none, batch, group, layer, rms, instance, tanh; or of a part of batch
            norm (`normscope.nets.batch_norm_parts`): batch_mean, batch_std, batch_detached, batch_first, batch_running,
            batch_ghost; or of the weights (`normscope.nets.weight_norms`): weight_mean, weight_std.
        where:
            - "swap": in the place of each norm that the model has.
            - "everywhere": behind each Conv, Linear and recurrent layer but the output layer. The model's own norms go.
            - "final": only in front of the output layer. The model's own norms go.
            - shell patterns of module paths (`"layer1.*"`, or a list): one that matches norms swaps those, one that
              matches none puts norms behind the layers it matches. Norms elsewhere stay.
            - None: "swap" where the model has norms, else "everywhere". Norms of the weights take no norm's place: they
              go "everywhere".
        batch: a batch to learn from, in one forward pass, what the order of registration does not say: which layer is
            called last, which more than once or never, which see tokens. It is `(inputs, labels)`, a mapping, a
            tensor of inputs, or what `loss_fn(model, batch)` takes.

    The output layer is the last one with a weight of two dimensions or more: in the order of calls where a batch is
    given, else in the order of registration. No norm is put behind it. The maps that an attention has fused, and
    layers that the batch never calls, are left as they are, and refused where they are named in full.

    Weights keep their bits and names. So do biases, also where the norm behind makes them redundant; and a layer
    without a bias gets none when the norm behind it, and its bias, go. A norm behind `conv1` is
    `conv1.output_norm`, one in front of `fc` is `fc.input_norm`; a swapped one has the old one's path; one that goes
    leaves `nn.Identity`. A norm that activates as well, as timm's BatchNormAct2d, gives its place `bn1` to a module
    that does this behind `bn1.norm`. All come fresh (weight 1, bias 0, no statistics yet), with the device, dtype and
    mode of the layer or norm that they are put at. Nothing is drawn. Norms of the weights are the exception:
    `conv1.weight` is then computed from parameters under `conv1.parametrizations.weight`, as torch does; with a batch,
    weight norm's g is set so that each channel has standard deviation 1 on it.

    Raises:
        InvalidConfig: an unknown kind, a place where there is nothing or nothing may be, a norm over a single value.
        InvalidModel: what cannot be changed safely: models compiled, scripted, quantized, fused or wrapped; tied
            weights; one batch norm for several calls.
        InvalidBatch: a batch that the model does not take.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
        >>> [type(module).__name__ for module in ns.with_norm(model, "group")]
        ['Conv2d', 'GroupNorm', 'Flatten', 'Linear']
        >>> type(model[1]).__name__  # as it was
        'BatchNorm2d'
    """
    if kind not in KINDS:
        raise unknown("norm", kind, KINDS)
    of_weights = kind in WEIGHT_NORMS
    if of_weights:
        check_place(kind, where)
    changed = changeable_copy(model)
    calls = None if batch is None else calls_of(changed, batch, loss_fn)
    norms = existing_norms(changed)
    operation = Operation(changed, norm_to_place(kind), calls)
    if where is None:
        where = "swap" if norms and not of_weights else "everywhere"
    if not where:
        raise InvalidConfig(
            f"where={where!r} names no place: say {', '.join(map(repr, PLACES))} or shell patterns of paths"
        )
    if where == "swap":
        if not norms and kind != "none":
            raise InvalidConfig("this model has no norms to swap: say where='everywhere' or 'final', or name layers")
        _swap(operation, norms)
    elif where in ("everywhere", "final"):
        for norm, path in _first_paths(norms).items():
            operation.take_out(path, norm)
        if kind != "none":
            _put_everywhere(operation) if where == "everywhere" else _put_final(operation)
    else:
        _put_at(operation, [where] if isinstance(where, str) else where, norms)
    if of_weights:
        norm_weights(operation, kind, batch, loss_fn)
    _leave_fused_path(operation)
    if calls is not None:
        _check_called(operation, calls, _calls_after(operation, batch, loss_fn))
    return operation.model


def _swap(operation: Operation, norms: dict[str, nn.Module]) -> None:
    for norm, path in _first_paths(norms).items():
        operation.swap(path, norm)


def _put_everywhere(operation: Operation) -> None:
    output_path, output = output_layer(operation.model, operation.calls)
    for layer, path in _first_paths(_layers(operation.model)).items():
        if layer is not output and why_left_out(operation.model, path, layer, operation.calls) is None:
            operation.put_behind(path, layer)
    if not operation.placed:
        but = f" but the output layer {output_path!r}" if output is not None else ""
        raise InvalidModel(f"this model has no layer{but}: there is nothing to put a norm behind")


def _put_final(operation: Operation) -> None:
    path, layer = output_layer(operation.model, operation.calls)
    if not isinstance(layer, nn.Linear | _ConvNd):
        what = f"its last layer {path!r} is {type(layer).__name__}" if layer is not None else "it has none"
        raise InvalidModel(
            f"'final' puts a norm in front of a Conv or Linear output layer, and {what}: name layers instead"
        )
    reason = why_left_out(operation.model, path, layer, operation.calls)
    if reason is not None:
        raise InvalidModel(f"the output layer {path!r} {reason}")
    operation.put_in_front(path, layer)


def _put_at(operation: Operation, patterns: Sequence[str], norms: dict[str, nn.Module]) -> None:
    swapped: dict[str, nn.Module] = {}
    behind: dict[str, nn.Module] = {}
    for pattern in patterns:
        hit = {path: norm for path, norm in norms.items() if fnmatchcase(path, pattern)}
        swapped |= hit
        behind |= {} if hit else _layers_at(operation, pattern)
    _swap(operation, swapped)
    for layer, path in _first_paths(behind).items():
        if operation.kind != "none":
            operation.put_behind(path, layer)
        elif is_attached(layer, OUTPUT_NORM):
            operation.take_out(f"{path}.{OUTPUT_NORM}", layer.get_submodule(OUTPUT_NORM))
        else:
            raise InvalidConfig(f"there is no norm at {path!r} to take out")


def _layers_at(operation: Operation, pattern: str) -> dict[str, nn.Module]:
    """The layers that a pattern matches and a norm may stand behind; what cannot be is refused."""
    model, layers = operation.model, _layers(operation.model)
    hit = {path: layer for path, layer in layers.items() if fnmatchcase(path, pattern)}
    if not hit:
        raise InvalidConfig(_nothing_at(model, pattern, layers))
    _, output = output_layer(model, operation.calls)
    reasons = {path: why_left_out(model, path, layer, operation.calls) for path, layer in hit.items()}
    reasons |= {path: "is the output layer: no norm stands behind it" for path, m in hit.items() if m is output}
    free = {path: layer for path, layer in hit.items() if reasons[path] is None}
    if not free or (len(free) < len(hit) and not any(sign in pattern for sign in "*?[")):
        path, reason = next((path, reason) for path, reason in reasons.items() if reason is not None)
        raise InvalidConfig(f"layer {path!r} {reason}")
    return free


def _nothing_at(model: nn.Module, pattern: str, layers: dict[str, nn.Module]) -> str:
    some = f"{', '.join(list(layers)[:3])}, ... ({len(layers)} in all): see `normscope layers MODEL`"
    other = next(((path, m) for path, m in model.named_modules() if path and fnmatchcase(path, pattern)), None)
    if other is None:
        return f"no layer or norm matches {pattern!r}; this model has {some}"
    what = f"{other[0]!r}, of type {type(other[1]).__name__}"
    return f"{pattern!r} matches {what}: norms stand behind convolutions, linear maps and recurrent nets, here {some}"


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules(remove_duplicate=False) if is_layer(module)}


def _first_paths(modules: dict[str, nn.Module]) -> dict[nn.Module, str]:
    """Each module once, with the first of its paths."""
    paths: dict[nn.Module, str] = {}
    for path, module in modules.items():
        paths.setdefault(module, path)
    return paths


def _leave_fused_path(operation: Operation) -> None:
    """Keep torch's transformer layers off their fused path in evaluation, which computes layer norms whatever stands in
    their place. Torch takes it only for layers that say their activation is one it knows."""
    for module in operation.model.modules():
        if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerEncoder):
            if operation.parents.isdisjoint(module.modules()):
                continue
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False
            else:
                module.activation_relu_or_gelu = 0


def _check_called(operation: Operation, before: Calls, after: Calls) -> None:
    """Each norm has to be called where the layer or norm that it was put at had been called."""
    paths = {module: path for path, module in operation.model.named_modules()}
    for at, norm in operation.placed.items():
        if at in before.shapes and norm not in after.shapes:
            raise InvalidModel(
                f"the norm put in as {paths[norm]!r} is never called: the model reads weights there past any call"
            )


def _calls_after(operation: Operation, batch: Batch, loss_fn: LossFn | None) -> Calls:
    try:
        return calls_of(operation.model, batch, loss_fn)
    except NormscopeError as error:
        raise InvalidModel(f"with {operation.kind!r} the model does not take its batch any more: {error}") from error
