"""Leave no trace: whatever happens inside `untouched(model)`, the model comes out bit for bit as it went in."""

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

_FLAGS = ("training", "_is_full_backward_hook")


@contextmanager
def untouched(model: nn.Module) -> Iterator[dict[Tensor, Tensor]]:
    """Restore, on leaving, all of the model's state and torch's random state.

    That is: parameters, buffers, `.grad`, `requires_grad`, mode and hooks, the same objects holding the same bits; and
    the random state on the CPU and on every GPU that the model lives on. Also restores when the body raises.

    Yields the saved value of each parameter and buffer, to read: the one copy that this costs.

    Raises:
        InvalidModel: where a parameter has not been initialized yet (a lazy module before its first call).
    """
    states = [vars(module) for module in model.modules()]
    slots = [(state[name], dict(state[name])) for state in states for name in ("_parameters", "_buffers")]
    tensors = list(dict.fromkeys(t for _, slot in slots for t in slot.values() if t is not None))
    if any(nn.parameter.is_lazy(t) for t in tensors):
        raise InvalidModel("the model has lazy parameters without a shape: call it once on a batch first")
    with torch.no_grad():
        values = {t: t.clone() for t in tensors}
        grads = [(t, t.grad, None if t.grad is None else t.grad.clone(), t.requires_grad) for t in tensors]
    flags = [(state, {name: state[name] for name in _FLAGS if name in state}) for state in states]
    hooks = [(state[name], list(state[name].items())) for state in states for name in _HOOKS if name in state]
    gpus = sorted({t.device.index for t in tensors if t.is_cuda})
    with torch.random.fork_rng(devices=gpus):
        try:
            yield values
        finally:
            for slot, before in slots:
                slot.clear()
                slot.update(before)
            written = [t for t in tensors if is_writable(t)]
            with torch.no_grad():
                if written:
                    torch._foreach_copy_(written, [values[t] for t in written])  # pyright: ignore
                for tensor, grad, saved, requires_grad in grads:
                    if tensor.grad_fn is not None:
                        tensor.detach_()
                    if tensor.requires_grad is not requires_grad:
                        tensor.requires_grad_(requires_grad)
                    if grad is not None and saved is not None and is_writable(grad):
                        grad.copy_(saved)
                    if tensor.grad is not grad:
                        tensor.grad = grad
            for state, before in flags:
                state.update(before)
            for hook, before in hooks:
                hook.clear()
                hook.update(before)


def is_writable(tensor: Tensor) -> bool:
    """Whether torch lets anyone write to it: not to an expanded one, which therefore nothing can have changed."""
    if tensor.layout != torch.strided:
        return True
    return not any(stride == 0 and n > 1 for stride, n in zip(tensor.stride(), tensor.shape, strict=True))
