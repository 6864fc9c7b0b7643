"""The cuts that `with_norm` is made of, on a copy that is its own: swap a norm, take it out, put one at a layer."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from normscope.errors import InvalidConfig, InvalidModel
from normscope.nets.attachment import OUTPUT_NORM, attach_behind, attach_in_front, detach, is_attached
from normscope.surgery.calls import Calls
from normscope.surgery.channel_norms import norm_at
from normscope.surgery.places import Place, place_of
from normscope.surgery.refusals import why_mixed, why_unsafe
from normscope.surgery.work_behind import NormThen, work_behind


@dataclass
class Operation:
    """A model under change, towards norms of one kind."""

    model: nn.Module
    kind: str
    calls: Calls | None
    placed: dict[nn.Module, nn.Module] = field(default_factory=dict)
    """The fresh norms, each by the layer or the old norm that it was put at."""
    parents: set[nn.Module] = field(default_factory=set)
    """The modules that have a child changed."""

    def __post_init__(self) -> None:
        self._paths: dict[nn.Module, list[str]] = {}
        self._owners: dict[int, list[nn.Module]] = {}
        self._holders: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            self._paths.setdefault(module, []).append(path)
        for module in self._paths:
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(module)
            for name, child in module._modules.items():  # named_children leaves a child's second name out
                if child is not None:
                    self._holders.setdefault(child, []).append((module, name))
        parameters = self.model.parameters()
        self._any_parameter = next((one for one in parameters if one.is_floating_point()), None)

    def path(self, module: nn.Module) -> str:
        """Where a module of the model, as it was given, is registered first."""
        return self._paths[module][0]

    def swap(self, path: str, old: nn.Module) -> None:
        """Put a fresh norm in the place of an old one, wherever that is registered; "none" takes it out."""
        if self.kind == "none":
            return self.take_out(path, old)
        shape = self._shape(old)
        place = place_of(old, shape)
        behind = work_behind(path, old, _example_shape(place, shape))
        if place is None:
            more = "" if shape is not None else "; give a batch, and the shape of its output may tell"
            raise InvalidModel(
                f"norm {path!r} ({type(old).__name__}) does not say which dimension holds its channels{more}"
            )
        fresh = self._fresh(path, old, place, shape)
        self._replace(old, NormThen(fresh, behind) if behind else fresh)

    def take_out(self, path: str, old: nn.Module) -> None:
        """Leave `nn.Identity` in the place of a norm, or nothing where it had been attached."""
        shape = self._shape(old)
        behind = work_behind(path, old, _example_shape(place_of(old, shape), shape))
        self._replace(old, NormThen(nn.Identity(), behind) if behind else None)

    def put_behind(self, path: str, layer: nn.Module) -> None:
        """Put a norm behind a layer, in the place of one that was put there before."""
        inside = set(layer.modules())
        weights = [weight for weight in layer.parameters() if weight.ndim > 1]
        others = [owner for weight in weights for owner in self._owners[id(weight)] if owner not in inside]
        self._refuse_unsafe(path, layer, self._paths[others[0]][0] if others else None)
        shape = self._shape(layer)
        norm = self._fresh(path, layer, _outputs_of(path, layer, shape), shape)
        if is_attached(layer, OUTPUT_NORM):
            detach(layer, OUTPUT_NORM)
        attach_behind(layer, norm)
        self.parents.add(layer)

    def put_in_front(self, path: str, layer: nn.Module) -> None:
        """Put a norm in front of a layer. Its weight may be tied: in front of it the scale goes on to count."""
        self._refuse_unsafe(path, layer, None)
        # A Linear layer's input has the dims of its output; a convolution's has positions of its own.
        shape = None if isinstance(layer, _ConvNd) else self._shape(layer)
        attach_in_front(layer, self._fresh(path, layer, _inputs_of(layer), shape))
        self.parents.add(layer)

    def _refuse_unsafe(self, path: str, layer: nn.Module, tied_to: str | None) -> None:
        reason = why_unsafe(layer, tied_to)
        if reason is not None:
            raise InvalidModel(f"layer {path!r} {reason}")

    def _fresh(self, path: str, at: nn.Module, place: Place, shape: torch.Size | None) -> nn.Module:
        """A norm with the device, dtype and mode of what it is put at, for tensors of `shape`, where that is known."""
        times = None if self.calls is None else len(self.calls.shapes.get(at, ()))
        reason = why_mixed(times, self._paths[at]) if self.kind.startswith("batch") else None
        if reason is not None:
            raise InvalidModel(f"{path!r} {reason}")
        try:
            norm = norm_at(self.kind, place, shape)
        except InvalidConfig as error:
            raise InvalidConfig(f"at {path!r}: {error}") from None
        own = [tensor for tensor in [*at.parameters(), *at.buffers()] if tensor.is_floating_point()]
        like = own[0] if own else self._any_parameter
        if like is not None:
            norm.to(like.device, like.dtype)
        self.placed[at] = norm.train(at.training)
        return norm

    def _replace(self, old: nn.Module, new: nn.Module | None) -> None:
        if old is self.model:
            self.model = nn.Identity() if new is None else new
        for parent, name in self._holders.get(old, []):
            self.parents.add(parent)
            if new is None and is_attached(parent, name):
                detach(parent, name)
            else:
                parent.register_module(name, nn.Identity() if new is None else new)

    def _shape(self, module: nn.Module) -> torch.Size | None:
        """The shape that comes out of a module."""
        return self.calls.shapes[module][0] if self.calls is not None and module in self.calls.shapes else None


def _example_shape(place: Place | None, shape: torch.Size | None) -> torch.Size | None:
    """A shape of what a norm takes: `shape` where that is known."""
    if shape is not None or place is None:
        return shape
    if place.channel_dim == 1:
        return torch.Size([2, place.num_channels, *[3] * (place.spatial_dims or 0)])
    return torch.Size([2, 3, place.num_channels])


def _outputs_of(path: str, layer: nn.Module, shape: torch.Size | None) -> Place:
    """The channels of what comes out of a layer; those of somebody's own layer by what comes out, of `shape`."""
    if isinstance(layer, _ConvNd):
        return Place(layer.out_channels, 1, len(layer.kernel_size))
    if isinstance(layer, nn.Linear):
        return Place(layer.out_features, -1, None)
    if isinstance(layer, nn.RNNBase):
        return Place((layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1), -1, None)
    declared = next((n for name in _NUM_OUTPUTS if isinstance(n := getattr(layer, name, None), int)), None)
    dims = [] if shape is None else [dim for dim in {1, len(shape) - 1} if len(shape) == 2 or shape[dim] == declared]
    if shape is None or len(shape) < 2 or len(dims) != 1:
        more = "; give a batch, and the shape of its output may tell" if shape is None else f" in {tuple(shape)}"
        raise InvalidModel(
            f"layer {path!r} ({type(layer).__name__}) does not say which dimension holds its channels{more}"
        )
    return Place(shape[dims[0]], 1 if dims[0] == 1 else -1, None)


_NUM_OUTPUTS = ("out_channels", "out_features", "_out_feats", "nf")
"""What layers of other packages call the number of their outputs."""


def _inputs_of(layer: nn.Module) -> Place:
    if isinstance(layer, _ConvNd):
        return Place(layer.in_channels, 1, len(layer.kernel_size))
    assert isinstance(layer, nn.Linear)
    return Place(layer.in_features, -1, None)
