"""Leave no trace: whatever happens inside `untouched(model)`, the model comes out bit for bit as it went in."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.model.held_state import way_back
from normscope.model.structure import Structure
from normscope.runtime.interrupts import Interrupts, restoring, waits_on_exit
from normscope.runtime.torch_state import Modes, RandomNumbers, SharedRandomNumbers

LARGE = 2**20
"""Numbers of a tensor that is worth comparing before it is copied."""

_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


def untouched(model: nn.Module) -> AbstractContextManager["Saved"]:
    """Restore, on leaving, all of the model's state and torch's random state.

    That is: parameters, buffers and other tensors, `.grad`, `requires_grad`, mode and hooks, the same objects holding
    the same bits; all other attributes of modules too, with the contents of lists, dicts, sets and numpy arrays and the
    states of random generators, so that what a model notes of itself in a forward pass fits what is restored; the
    random state on the CPU and on every GPU that the model lives on, and that of Python and numpy; and torch's modes,
    as of gradients.

    Also restores when the body raises or is interrupted, at whatever moment: a signal that arrives while it saves or
    restores is handled when that is done. Where contexts of several threads overlap, the last to be left restores the
    random state that the first has found.

    Gives what it saved: the one copy that this costs. Inside another one of the same model, large tensors that still
    have their bits are not copied again.

    Raises:
        InvalidModel: where a parameter has not been initialized yet (a lazy module before its first call).

    Example:
        >>> model = nn.BatchNorm1d(3)
        >>> with ns.untouched(model):
        ...     _ = model(torch.ones(4, 3))
        >>> model.running_mean.tolist(), int(model.num_batches_tracked)
        ([0.0, 0.0, 0.0], 0)
    """
    return _Untouched(model)


@restoring
def seeded(model: nn.Module, seed: int, *, training: bool = True) -> Iterator[None]:
    """`untouched`, with gradients on, in training or in evaluation mode, and torch's generators at the seed."""
    with untouched(model), torch.enable_grad():
        model.train(training)
        torch.manual_seed(seed)
        yield


class Saved(Mapping[Tensor, Tensor]):
    """What a model was: the value of each of its tensors, to read, and the way back there."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._structure = self._now = Structure(model)
        tensors = self._structure.tensors
        if any(nn.parameter.is_lazy(t) for t in tensors):
            raise InvalidModel("the model has lazy parameters without a shape: call it once on a batch first")
        tensors = _without_views(tensors)
        # A second tensor on the same memory, since `.data = ` and `.to(...)` give the first one other memory.
        self._aliases = [t.detach() for t in tensors]
        with torch.no_grad():
            held = _held_of(model)
            self._saved = [_copy_of(alias, held.get(t)) for t, alias in zip(tensors, self._aliases, strict=True)]
            self._leaves = [_Leaf(t) for t in tensors if t.is_leaf]
        self._values = dict(zip(tensors, self._saved, strict=True))
        self._ways_back = [back for each in self._structure.held if (back := way_back(each)) is not None]
        self.gpus = sorted({t.device.index for t in tensors if t.is_cuda})
        written = [i for i, t in enumerate(tensors) if _is_writable(t)]
        # Only inference mode may write to what was made in it.
        self._normal = [i for i in written if not tensors[i].is_inference()]
        self._inference = [i for i in written if tensors[i].is_inference()]

    def __getitem__(self, tensor: Tensor) -> Tensor:
        return self._values[tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def restore(self) -> None:
        """Put the model back to what it was. The random state stays as it is."""
        self._structure.restore()
        self.restore_values()
        failed: list[Exception] = []
        with torch.no_grad():
            for leaf in self._leaves:
                try:
                    leaf.restore()
                except Exception as error:  # the others come first
                    failed.append(error)
        if failed:
            raise failed[0]

    def restore_values(self) -> None:
        """Put the bits of all tensors back, but not those of gradients, and the model's own generators and arrays."""
        with torch.no_grad():
            _copy(self._aliases, self._saved, self._normal)
        if self._inference:
            with torch.inference_mode():
                _copy(self._aliases, self._saved, self._inference)
        for tensor, alias in zip(self._values, self._aliases, strict=True):
            if not _same_memory(tensor, alias):
                tensor.data = alias
        for back in self._ways_back:
            back()

    def one_pass(self, seed: int | None = None, *, draws_on: bool = False) -> AbstractContextManager[None]:
        """A pass of several from the same place: it starts with the tensors' saved values, in the mode and with the
        hooks that the model has now. What it makes, replaces, drops, freezes or thaws in the model is put back at its
        end, and so is torch's random state.

        Args:
            seed: of the random numbers; None for those that torch's generators stand at.
            draws_on: leave torch's random state where the pass has brought it, for the next one to go on from.
        """
        return _Pass(self, seed, draws_on)

    def start_pass(self) -> Structure:
        """Put the values back; gives what else is to be restored after the pass."""
        if not self._now.holds():
            self._now = Structure(self._model)
        self.restore_values()
        return self._now


class _Pass(AbstractContextManager[None]):
    """No generator: one that an interrupt leaves open would restore when somebody lets go of it, much later on."""

    def __init__(self, saved: Saved, seed: int | None, draws_on: bool) -> None:
        self._saved, self._seed, self._draws_on = saved, seed, draws_on

    def __enter__(self) -> None:
        self._random = RandomNumbers(self._saved.gpus)
        self._structure = self._saved.start_pass()
        self._trainable = [(t, t.requires_grad) for t in self._structure.tensors if t.is_leaf]
        if self._seed is not None:
            torch.manual_seed(self._seed)

    def __exit__(self, *_: object) -> None:
        self._structure.restore()
        for tensor, was in self._trainable:
            if tensor.requires_grad is not was and tensor.is_leaf:
                tensor.requires_grad_(was)
        if not self._draws_on:
            self._random.restore()


class _Untouched(AbstractContextManager[Saved]):
    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._interrupts = Interrupts()
        self._found: ExitStack | None = None
        self.saved: Saved | None = None

    @property
    def is_open(self) -> bool:
        """Whether the body runs."""
        return self._found is not None and self._interrupts.at_once

    def __enter__(self) -> Saved:
        try:
            self._interrupts.hold()
            self.saved = saved = Saved(self._model)
            random = SharedRandomNumbers(saved.gpus)
            self._found = ExitStack()  # whatever one raises, it goes on with the others
            for each in (random, saved, Modes()):
                self._found.callback(each.restore)
            _open().append(self)
            self._interrupts.at_once = True
            self._interrupts.deliver()  # still in here: what raises in front of the body has to be caught here
        except BaseException:
            self.__exit__()
            raise
        return saved

    @waits_on_exit
    def __exit__(self, *_: object) -> None:
        self._interrupts.at_once = False
        found, self._found, self.saved = self._found, None, None
        try:
            if found is not None:
                self._close_inner(found)
                found.close()
        finally:
            self._interrupts.release()

    def _close_inner(self, found: ExitStack) -> None:
        """Those of the same model that were entered in here and never left, where interrupts came one upon the other,
        must not restore what they have found when somebody lets go of them later on."""
        opened = _open()
        later = opened[opened.index(self) + 1 :] if self in opened else []
        for inner in [each for each in later if each._model is self._model]:
            found.callback(inner.__exit__)
        if self in opened:
            opened.remove(self)


_contexts = threading.local()


def _open() -> list[_Untouched]:
    """This thread's contexts that have been entered and not left, the innermost last."""
    return vars(_contexts).setdefault("open", [])


def _held_of(model: nn.Module) -> Mapping[Tensor, Tensor]:
    """What this thread's innermost context of the model has saved."""
    return next((each.saved for each in reversed(_open()) if each._model is model and each.saved), {})


def _copy_of(tensor: Tensor, held: Tensor | None) -> Tensor:
    """A copy; of a large tensor the one that is held, where it has the same bits."""
    as_ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    if held is None or as_ints is None or tensor.numel() < LARGE or not tensor.is_contiguous():
        return tensor.clone()
    same = (held.dtype, held.shape, held.device) == (tensor.dtype, tensor.shape, tensor.device)
    return held if same and torch.equal(tensor.view(as_ints), held.view(as_ints)) else tensor.clone()


class _Leaf:
    """What autograd keeps with a tensor: its gradient, whether it gets one, hooks and attributes of its own."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor: Any = tensor
        self._requires_grad, self._grad = tensor.requires_grad, tensor.grad
        self._value = None if tensor.grad is None else tensor.grad.clone()
        hooks = [getattr(tensor, name) for name in _TENSOR_HOOKS]
        self._hooks = [(each, None if each is None else dict(each)) for each in hooks]

    def restore(self) -> None:
        tensor, grad = self._tensor, self._grad
        if tensor.grad_fn is not None:
            tensor.detach_()
        if tensor.requires_grad is not self._requires_grad:
            tensor.requires_grad_(self._requires_grad)
        if grad is not None and self._value is not None and _is_writable(grad):
            grad.copy_(self._value)
        if tensor.grad is not grad:
            tensor.grad = grad
        for name, (hooks, before) in zip(_TENSOR_HOOKS, self._hooks, strict=True):
            now = getattr(tensor, name)
            if now is not None and now is not hooks:
                now.clear()  # torch goes on calling what is in there
            if before is not None and dict(hooks) != before:
                hooks.clear()
                hooks.update(before)
            if now is not hooks:
                setattr(tensor, name, hooks)


def _is_writable(tensor: Tensor) -> bool:
    """Whether torch lets anyone write to it: not to an expanded one, which therefore nothing can have changed."""
    if tensor.layout != torch.strided:
        return True
    return not any(stride == 0 and n > 1 for stride, n in zip(tensor.stride(), tensor.shape, strict=True))


def _without_views(tensors: list[Tensor]) -> list[Tensor]:
    """Without those that are views of others, or the same memory under another name: one copy is enough."""
    if all(isinstance(t, nn.Parameter) or t._base is None for t in tensors):
        return tensors
    known = set(tensors)
    return [t for t in tensors if t._base is None or t._base not in known]


def _same_memory(tensor: Tensor, alias: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory; layouts that have no one memory are believed."""
    if tensor.dtype != alias.dtype or tensor.device != alias.device or tensor.shape != alias.shape:
        return False
    try:
        return tensor.is_set_to(alias)
    except NotImplementedError:
        return True


def _copy(there: Sequence[Tensor], values: Sequence[Tensor], which: Sequence[int]) -> None:
    if which:
        torch._foreach_copy_([there[i] for i in which], [values[i] for i in which])  # pyright: ignore
