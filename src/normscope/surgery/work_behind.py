"""Norms that do more than normalize, such as timm's BatchNormAct2d, which also drops and activates.

What such a norm holds besides its weights can stay behind another norm, if that is the order in which it works: which
is seen from its numbers, not from its code.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from normscope.errors import InvalidModel


class NormThen(nn.Module):
    """A norm, and the modules behind it that were inside the one it replaces, under the names that they had there."""

    def __init__(self, norm: nn.Module, behind: dict[str, nn.Module]) -> None:
        super().__init__()
        self.norm = norm
        for name, module in behind.items():
            self.register_module(name, module)

    def forward(self, input: Tensor) -> Tensor:
        """Whatever shape the norm takes."""
        for module in self.children():
            input = module(input)
        return input


def work_behind(path: str, norm: nn.Module, shape: torch.Size | None) -> dict[str, nn.Module]:
    """The modules inside a norm that work on its output, in their order; `shape` is that of its input, if known.

    Raises:
        InvalidModel: for a norm that holds modules and is not itself followed by them.
    """
    inside = {name: child for name, child in norm.named_children() if not isinstance(child, nn.Identity)}
    if not inside:
        return {}
    if "norm" not in inside and shape is not None and _is_followed_by(norm, inside, shape):
        return inside
    more = "" if shape is not None else "; give a batch, and its numbers may tell whether they only follow it"
    raise InvalidModel(f"norm {path!r} ({type(norm).__name__}) is fused: it holds {', '.join(inside)} as well{more}")


def without_work(norm: nn.Module) -> nn.Module:
    """A copy of a norm whose modules do nothing."""
    bare = deepcopy(norm)
    for name, _ in norm.named_children():
        bare.register_module(name, nn.Identity())
    return bare


def _is_followed_by(norm: nn.Module, inside: dict[str, nn.Module], shape: torch.Size) -> bool:
    x = numbers_for(norm, shape)
    if x is None:
        return False
    apart = NormThen(without_work(norm), inside)
    return all(_same(deepcopy(norm).train(mode), deepcopy(apart).train(mode), x) for mode in (True, False))


def numbers_for(norm: nn.Module, shape: torch.Size) -> Tensor | None:
    """Random numbers of a shape, on a norm's device and in its dtype; None where there can be none."""
    like = next((t for t in [*norm.parameters(), *norm.buffers()] if t.is_floating_point()), torch.zeros(()))
    if like.is_meta:
        return None
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    return drawn.to(like.device, like.dtype)


def _same(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    found = []
    with torch.random.fork_rng(), torch.no_grad():
        for module in (one, other):
            torch.manual_seed(0)
            try:
                found.append(module(x.clone()))
            except Exception:  # of somebody's own, on numbers of ours
                return False
    return isinstance(found[0], Tensor) and torch.equal(found[0], found[1])
