"""What would the claims on figure 1 at reduced size come to, were the truth known? Replicas, drawn before any run is
seen.

A world says where the runs of every arm end on average, in per cent of the test images; a run scatters around it by a
standard deviation, half of whose variance a seed's runs share (they share images, order and held-out set). The pilots
were single runs, so that their scatter is not known: three are tried. Every replica goes through the
exhibit's own claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from normscope.descent.outcome import Outcome
from normscope.paper.exhibits.figure1_reduced import CHANCE, CLAIMS, gathered
from normscope.paper.reduced import ARMS
from normscope.statistics.verdict import VERDICTS

SCATTERS = (0.5, 1.0, 2.0)
"""Points, of one run."""

REPLICAS = 100


@dataclass(frozen=True)
class World:
    """Mean test accuracies by arm; an arm that is not named dies at the accuracy of guessing."""

    words: str
    ends: Mapping[str, float]


_PILOTS = {
    "resnet20 batch@0.1": 44.6,
    "resnet20 batch@0.01": 41.9,
    "resnet20 none@0.01": 41.6,
    "resnet20 batch@0.003": 40.0,
    "resnet56 batch@0.1": 47.5,
    "resnet56 none@0.003": 40.3,
    "resnet56 batch@0.003": 40.3,
    "resnet56 final@0.03": 44.0,
    "resnet56 none@0.01": 41.0,
    "resnet56 final@0.01": 42.0,
    "resnet110 batch@0.1": 47.5,
    "resnet110 batch@0.003": 40.0,
    "resnet110 none@0.003": 40.0,
}
"""As the pilots ended; arms without one as the paper would have them."""

WORLDS: tuple[World, ...] = (
    World("as the pilots and the paper have it", _PILOTS),
    World(
        "batch norm brings half of its gain at the small rate already",
        {
            **_PILOTS,
            **{f"{net} batch@{lr}": 43.9 for net, lr in (("resnet56", "0.003"), ("resnet110", "0.003"))},
            "resnet20 batch@0.01": 46.6,
            "resnet20 batch@0.1": 46.6,
            "resnet56 final@0.03": 41.0,
            "resnet56 none@0.03": 41.0,
        },
    ),
)


def drawn(world: World, scatter: float, seed: int) -> xr.Dataset:
    """One replica: a result of the exhibit, with every run finished."""
    random = np.random.default_rng((seed, round(1000 * scatter)))
    dataset = gathered([])
    of_seed = random.normal(size=dataset.sizes["seed"])
    for arm in ARMS:
        name, seeds = arm.name, list(range(arm.seeds))
        place = {"arm": name, "seed": seeds}
        lives = name in world.ends
        noise = scatter * np.sqrt(0.5) * (of_seed[: arm.seeds] + random.normal(size=arm.seeds))
        end = world.ends[name] + noise if lives else np.full(arm.seeds, CHANCE)
        dataset["test_accuracy"].loc[place] = end
        dataset["held_out_accuracy"].loc[place] = end + random.normal(size=arm.seeds)
        dataset["clean_train_accuracy"].loc[place] = 100.0 if lives else CHANCE
        dataset["outcome"].loc[place] = (Outcome.LEARNS if lives else Outcome.DEAD).value
    return dataset


def frequencies(
    world: World, scatter: float, replicas: int = REPLICAS, seeds: Sequence[int] | None = None
) -> dict[str, dict[str, float]]:
    """By claim, in which share of the replicas it comes out in each way."""
    counts: dict[str, dict[str, int]] = {claim.statement: {word: 0 for word in VERDICTS} for claim in CLAIMS}
    tried = range(replicas) if seeds is None else seeds
    for seed in tried:
        dataset = drawn(world, scatter, seed)
        for claim in CLAIMS:
            counts[claim.statement][claim.judged(dataset).verdict] += 1
    return {claim: {verdict: n / len(tried) for verdict, n in of.items()} for claim, of in counts.items()}


def simulated(replicas: int = REPLICAS) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """`frequencies` by world and scatter."""
    return {
        world.words: {f"{scatter:g} points": frequencies(world, scatter, replicas) for scatter in SCATTERS}
        for world in WORLDS
    }
