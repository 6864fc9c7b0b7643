"""All that a model of several outputs knows goes through one number."""

import torch
from torch import nn

from normscope.diagnosis.experiments import LEARNED
from normscope.diagnosis.facts import Facts, outputs_of
from normscope.diagnosis.fault import Fault, Suspicion
from normscope.statistics.numbers import percent

FEWEST_OUTPUTS = 3
"""For each number that the layer gives: of two classes one number tells all, and an image of one channel is no
bottleneck."""

NOTHING = 1e-4
"""Share of the outputs' spread that is left without what goes through the layer."""


def narrow(model: nn.Module) -> list[str]:
    """The linear layers and convolutions with one unit."""
    return [
        path for path, m in model.named_modules() if 1 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))
    ]


def _suspected(facts: Facts) -> Suspicion | None:
    model, batches = facts.program.build(0), facts.program.batches[:1]
    if facts.num_outputs < FEWEST_OUTPUTS or facts.score >= LEARNED or facts.run is None:
        return None
    for path in narrow(model):
        whole, given = outputs_of(model, batches, facts.program, 0), 0

        def fixed(_module: nn.Module, _inputs: object, y: torch.Tensor) -> torch.Tensor:
            nonlocal given
            given = y.numel()
            return y.mean(0, keepdim=True).expand_as(y)

        handle = model.get_submodule(path).register_forward_hook(fixed)
        try:
            without = outputs_of(model, batches, facts.program, 0)
        finally:
            handle.remove()
        if not whole or given * FEWEST_OUTPUTS > whole[0].numel():
            continue
        if without and _spread(without[0]) < NOTHING * _spread(whole[0]):
            return Suspicion(
                "everything goes through one unit",
                f"Layer {path} has one unit, and with that unit's output held fixed all examples get the same "
                f"{facts.num_outputs} outputs: they learn {percent(max(facts.score, 0.0))} of what there is to learn.",
                {"outputs": float(facts.num_outputs), "score": facts.score},
                True,
                place=path,
            )
    return None


def _spread(outputs: torch.Tensor) -> float:
    return float(outputs.double().std(0, correction=0).max())


def _advice(facts: Facts, suspicion: Suspicion) -> tuple[str, str]:
    path, width = suspicion.place, facts.num_outputs
    return f"Make layer {path} as wide as the outputs at least.", f"# {path}: {width} units or more in place of 1"


FAULT = Fault("bottleneck", "architecture", 10, suspected=_suspected, advice=_advice, early=True)
