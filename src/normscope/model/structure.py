"""What is where in a model: every object that hangs on it, so that whatever a forward pass makes, replaces or drops
there can be put back."""

from collections import OrderedDict, deque
from collections.abc import Iterable
from operator import is_
from types import SimpleNamespace
from typing import Any, TypeVar

from torch import Tensor, nn

from normscope.model.held_state import HELD

D = TypeVar("D", bound=dict[Any, Any])

_BASES = (nn.Module, Tensor, OrderedDict, dict, list, deque, set, tuple, SimpleNamespace, *HELD)
"""What leads on from an attribute. `OrderedDict` is in front of `dict`, whose own `clear` would break it."""


class Structure:
    """The classes and attributes of a model's modules and the contents of all lists, dicts, sets and records (data
    classes) that these lead to, hooks among them: which objects, not what is in a tensor.

    Modules that only a plain attribute leads to count as the model's. What other objects hold is their own business.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tensors: list[Tensor] = []
        self.held: list[Any] = []
        self._modules: list[tuple[nn.Module, type, dict[str, Any]]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._ordered: list[tuple[OrderedDict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[Any, list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._empty: list[Any] = []
        bases: dict[type, type | None] = {}
        todo: list[tuple[Any, type]] = [(model, nn.Module)]
        seen = {id(model)}
        for thing, its_base in todo:
            for value in self._noted(thing, its_base):
                kind = type(value)
                base = bases[kind] if kind in bases else bases.setdefault(kind, _base_of(kind))
                if base is None:
                    continue
                if base is OrderedDict and not value:  # most hooks: they are many, so they have to be quick
                    self._empty.append(value)
                elif id(value) not in seen:
                    seen.add(id(value))
                    if base is Tensor:
                        self.tensors.append(value)
                    elif base in HELD:
                        self.held.append(value)
                    else:
                        todo.append((value, base))

    def _noted(self, thing: Any, base: type) -> Iterable[Any]:
        """Note what a thing holds now, and give it."""
        if base is nn.Module or base is SimpleNamespace or base is dict:
            state = thing if base is dict else vars(thing)
            if base is nn.Module:
                self._modules.append((thing, type(thing), state))
            self._dicts.append((state, dict(state)))
            return self._dicts[-1][1].values()
        if base is OrderedDict:
            self._ordered.append((thing, dict(thing)))
            return self._ordered[-1][1].values()
        if base is set:
            self._sets.append((thing, set(thing)))
            return self._sets[-1][1]
        if base is not tuple:
            self._sequences.append((thing, list(thing)))
            return self._sequences[-1][1]
        return thing

    def holds(self) -> bool:
        """Whether every object is still where it was."""
        return (
            all(type(module) is kind and vars(module) is state for module, kind, state in self._modules)
            and not any(self._empty)
            and not _changed(self._dicts)
            and not _changed(self._ordered)
            and all(_same_items(sequence, items) for sequence, items in self._sequences)
            and all(members == were for members, were in self._sets)
        )

    def restore(self) -> None:
        """Put every object back where it was, and take away what has been added."""
        for module, kind, state in self._modules:
            if type(module) is not kind:  # a module that is parametrized gets a class of its own
                object.__setattr__(module, "__class__", kind)
            if vars(module) is not state:
                object.__setattr__(module, "__dict__", state)
        for state, before in _changed(self._dicts):
            dict.clear(state)
            dict.update(state, before)
        for ordered in self._empty:
            if ordered:
                OrderedDict.clear(ordered)
        for ordered, before in _changed(self._ordered):
            OrderedDict.clear(ordered)
            for key, value in before.items():
                OrderedDict.__setitem__(ordered, key, value)
        for sequence, items in self._sequences:
            if not _same_items(sequence, items):
                base: Any = list if isinstance(sequence, list) else deque
                base.clear(sequence)
                base.extend(sequence, items)
        for members, were in self._sets:
            if members != were:
                set.clear(members)
                set.update(members, were)


def _base_of(kind: type) -> type | None:
    """Which of `_BASES` a class counts as; None for what does not lead on."""
    if hasattr(kind, "__dataclass_fields__") and not issubclass(kind, _BASES):
        return SimpleNamespace if kind.__dictoffset__ else None  # one with slots has no `vars`
    return next((base for base in _BASES if issubclass(kind, base)), None)


def _changed(dicts: list[tuple[D, dict[Any, Any]]]) -> list[tuple[D, dict[Any, Any]]]:
    """Those that do not hold the very same objects in the same order: tensors cannot be asked whether they are equal,
    and there are thousands of dicts."""
    return [
        (now, before)
        for now, before in dicts
        if (now or before)
        and not (
            len(now) == len(before) and all(map(is_, now.values(), before.values())) and all(map(is_, now, before))
        )
    ]


def _same_items(sequence: Any, items: list[Any]) -> bool:
    return len(sequence) == len(items) and all(map(is_, sequence, items))
