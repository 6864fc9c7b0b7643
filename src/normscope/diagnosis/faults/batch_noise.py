"""What an example gives depends on chance, on who shares its batch."""

from collections.abc import Iterator
from dataclasses import replace

import xarray as xr
from torch import nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.program import Program
from normscope.model.batch import joined
from normscope.statistics.numbers import percent
from normscope.surgery import with_norm

BATCH_NOISE = 0.75
"""An example's output moves by this share of the outputs' spread with its batch. With batch norm in three layers it is
about 0.4 on 32 examples, 0.9 on 4; in ResNet-110 it is 0.5 on 128 and 0.7 on 32."""


SMALL, TIMES = 8, 8
"""Batches of fewer examples than the first are made larger by the second factor, to see whether that helps; larger ones
do with another norm."""

CODE = 'model = normscope.with_norm(model, "group", batch=batch)  # or larger batches'


def batch_noise(evidence: xr.Dataset) -> Finding | None:
    """What an example gives depends on chance, on who shares its batch."""
    coupling = float(evidence["coupling"])
    if not coupling >= BATCH_NOISE:
        return None
    return Finding(
        "batch_noise",
        "examples depend on who shares their batch",
        f"An example's output moves by {percent(coupling)} of the outputs' spread with the rest of its batch: batches "
        "are too small for the statistics taken over them.",
        "Give larger batches, or a norm of one example in place of batch norm: group, layer or rms.",
        numbers={"coupling": coupling},
    )


def _repairs(program: Program, facts: Facts) -> Iterator[Repair]:
    if facts.batch_size < SMALL:
        rows = [joined(program.batches[i : i + TIMES]) for i in range(0, len(program.batches) - TIMES + 1, TIMES)]
        batches = [batch for batch in rows if batch is not None]
        if batches:
            code = f"DataLoader(data, batch_size={TIMES * facts.batch_size}, shuffle=True, drop_last=True)"
            yield Repair(replace(program, batches=batches), code, f"batches of {TIMES * facts.batch_size}")

    def mended(seed: int) -> nn.Module:
        model = program.build(seed)
        return with_norm(model, "group", batch=program.batches[0], loss_fn=program.loss_fn)

    yield Repair(replace(program, build=mended), CODE, "group norm in the place of its norms")


FAULT = Fault("batch_noise", "batch_size", 107, rule=batch_noise, repairs=_repairs, harmless=True)
