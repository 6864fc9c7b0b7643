"""Leave no trace: whatever happens inside `untouched(model)`, the model comes out bit for bit as it went in."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from normscope.errors import InvalidModel

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def untouched(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    """Restore, on leaving, the model's parameters, buffers, `.grad`, `requires_grad`, mode and hooks, and torch's
    random state on the CPU and on every GPU that the model lives on: the same objects holding the same bits.

    Yields the saved value of each parameter and buffer, to read: the one copy that this costs. Also restores when the
    body raises.

    Raises:
        InvalidModel: where a parameter has not been initialized yet (a lazy module before its first call).
    """
    modules = list(model.modules())
    owned = [(module, name) for module in modules for name in ("_parameters", "_buffers")]
    slots = [(getattr(module, name), dict(getattr(module, name))) for module, name in owned]
    tensors = list(dict.fromkeys(t for _, slot in slots for t in slot.values() if t is not None))
    if any(nn.parameter.is_lazy(t) for t in tensors):
        raise InvalidModel("the model has lazy parameters without a shape: call it once on a batch first")
    values = {t: t.detach().clone() for t in tensors}
    grads = [(t, t.grad, _copy(t.grad), t.requires_grad) for t in tensors]
    modes = [module.training for module in modules]
    hooks = [(getattr(m, h), OrderedDict(getattr(m, h))) for m in modules for h in _HOOKS if hasattr(m, h)]
    gpus = sorted({t.device.index for t in tensors if t.is_cuda})
    with torch.random.fork_rng(devices=gpus):
        try:
            yield values
        finally:
            with torch.no_grad():
                for slot, before in slots:
                    slot.clear()
                    slot.update(before)
                for tensor, grad, grad_value, requires_grad in grads:
                    if tensor.grad_fn is not None:
                        tensor.detach_()
                    tensor.copy_(values[tensor])
                    if tensor.requires_grad is not requires_grad:
                        tensor.requires_grad_(requires_grad)
                    if grad is not None and grad_value is not None:
                        grad.copy_(grad_value)
                    tensor.grad = grad
            for module, mode in zip(modules, modes, strict=True):
                module.training = mode
            for hook, before in hooks:
                hook.clear()
                hook.update(before)


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
