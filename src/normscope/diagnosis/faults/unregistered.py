"""Layers in a plain list, tuple or dict are no part of the model: no optimizer of its parameters moves them."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program


def unregistered(model: nn.Module) -> dict[str, list[nn.Module | nn.Parameter]]:
    """What trainable modules and parameters a plain container of the model holds that the model does not, by the path
    of the container."""
    known = {id(p) for p in model.parameters()}
    found = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            kept = [each for each in _held(value) if any(id(p) not in known for p in _trainable(each))]
            if kept:
                found[f"{path}.{name}".lstrip(".")] = kept
    return found


def _held(value: Any) -> Iterator[nn.Module | nn.Parameter]:
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _held(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _held(part)


def _trainable(held: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    parameters = [held] if isinstance(held, nn.Parameter) else list(held.parameters())
    return [p for p in parameters if p.requires_grad]


def registered(model: nn.Module) -> nn.Module:
    """A copy of the model that knows them; the containers stay."""
    model = copy.deepcopy(model)
    for place, (path, held) in enumerate(unregistered(model).items()):
        holder = nn.Module()
        for number, each in enumerate(held):
            setattr(holder, f"held_{number}", each)
        owner = model.get_submodule(path.rpartition(".")[0])
        owner.add_module(f"registered_{place}", holder)
    return model


def _suspected(facts: Facts) -> Suspicion | None:
    found = unregistered(facts.program.build(0))
    if not found:
        return None
    path, held = next(iter(found.items()))
    left_out = sum(p.numel() for each in held for p in _trainable(each))
    return Suspicion(
        "layers are not registered",
        f"self.{path} is a plain container: the {left_out:,} trainable numbers in it are not in model.parameters(), so "
        "that no optimizer moves them, and not in state_dict(), so that no checkpoint keeps them.",
        {"left_out": float(left_out)},
        place=path,
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    build, found = program.build, unregistered(program.build(0))
    if not found:
        return
    path, held = next(iter(found.items()))
    kind = "ParameterList" if isinstance(held[0], nn.Parameter) else "ModuleList"
    made = replace(program, build=lambda seed: registered(build(seed)))
    yield Repair(made, f"self.{path} = nn.{kind}(self.{path})  # nn.{kind[:-4]}Dict of a dict", "all layers registered")


FAULT = Fault("unregistered", "architecture", 40, suspected=_suspected, repairs=_repairs)
