"""Where residual branches end, as a model's blocks declare it: a block names that child in `residual_tail`.

With weight and bias of that layer or norm zero, the branch adds nothing to its block's input.
"""

from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.nets.attachment import OUTPUT_NORM, is_attached


def declared_tails(model: nn.Module) -> list[nn.Module]:
    """The children that blocks name in a `residual_tail`; InvalidModel where there is none of that name."""
    named = [(module, getattr(module, "residual_tail", None)) for module in model.modules()]
    return [_child(module, name) for module, name in named if isinstance(name, str)]


def _child(block: nn.Module, name: str) -> nn.Module:
    try:
        return block.get_submodule(name)
    except AttributeError as error:
        raise InvalidModel(f"{type(block).__name__}.residual_tail is {name!r}: it has no such layer") from error


def tail_tensors(model: nn.Module, tail: nn.Module) -> list[Tensor]:
    """Weight and bias that are zero where a tail's output is to be; InvalidModel for a tail that owns no weight."""
    if is_attached(tail, OUTPUT_NORM):
        tail = tail.get_submodule(OUTPUT_NORM)
    if isinstance(tail, nn.MultiheadAttention):
        tail = tail.out_proj
    own = dict(tail.named_parameters(recurse=False))
    if "weight" not in own:
        path = next((path for path, module in model.named_modules() if module is tail), "")
        raise InvalidModel(
            f"init 'zero_residual': {path!r} ({type(tail).__name__}) ends a residual branch but owns no weight"
        )
    return [own[name] for name in ("weight", "bias") if name in own]
