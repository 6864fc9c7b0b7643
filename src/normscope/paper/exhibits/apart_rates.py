"""Batch norm taken apart: which part of it buys the learning rate?

Every rung of `paper.ladder` from the same Xavier weights, CIFAR-10 averaged to 16 × 16, mini-batches of 64: short
descents of 40 steps with momentum 0.9 (`stable_lr`), and the Hessian of one mini-batch.
"""

import torch
import xarray as xr
from torch import Tensor

from normscope.paper.exhibit import Exhibit, Setting, over_networks
from normscope.paper.ladder import OF_NOISE_AND_EDGE, OF_RATES, claims
from normscope.paper.ladder_map import draw_map, in_words
from normscope.paper.rungs import IMAGE_SIZE, WITH_RATES, at_reduced_size, build, rungs_to_measure
from normscope.probes.sharpness import sharpness
from normscope.rates.stable_lr import stable_lr

BATCH_SIZE, STEPS, MOMENTUM = 64, 40, 0.9

LR_RANGE = (1e-5, 100.0)

TOLERANCE, MOST_PRODUCTS = 0.05, 30
"""Of λ₁, relative; NaN where so many products do not reach it."""

KEPT = ("lr_recommended", "lr_recommended_found", "lr_usable", "lr_usable_found", "lr_stable", "lr_stable_found")


def measure(setting: Setting) -> xr.Dataset:
    """The rate to train at, the largest usable and the largest stable one, seed by seed, and 2(1 + μ)/λ₁ of the first
    mini-batch. A setting that trains nothing gets the rungs of which every seed is measured already."""
    small = at_reduced_size(setting)

    def measure_one(rung: str, seed: int) -> xr.Dataset:
        def walk(_: int) -> list[tuple[Tensor, Tensor]]:
            endless = small.batches(seed, BATCH_SIZE)
            return [next(endless) for _ in range(STEPS)]

        rates = stable_lr(
            lambda _: build(small, rung, seed),
            walk,
            optimizer="momentum",
            steps=STEPS,
            seeds=1,
            lr_range=LR_RANGE,
        )[[*KEPT, "train_steps"]]
        sharp = sharpness(
            build(small, rung, seed), walk(0)[0], momentum=MOMENTUM, tolerance=TOLERANCE, max_products=MOST_PRODUCTS
        )
        known = bool(sharp["converged"][0])
        sharp = sharp.assign(sharpness=sharp["eigenvalue"].isel(rank=0, drop=True))[["sharpness", "edge_lr"]]
        return rates.drop_attrs(deep=False).merge(sharp.where(known).drop_attrs(deep=False))

    return over_networks(
        small,
        "apart_rates",
        measure_one,
        {"norm": rungs_to_measure(setting, "apart_rates", WITH_RATES)},
        image_size=IMAGE_SIZE,
        descent={"batch_size": BATCH_SIZE, "steps": STEPS, "momentum": MOMENTUM, "threads": torch.get_num_threads()},
    )


EXHIBIT = Exhibit(
    name="apart_rates",
    title="Which part of batch norm buys the rate?",
    where="not in the paper",
    place=8.1,
    paper_saw=(
        "The paper says that batch norm allows large rates, and not which part of it does. Here each part alone, and "
        "what is used in its place, takes short descents from the same weights: the rate to train at, the largest at "
        "which it learns and the largest at which it does not diverge."
    ),
    measure=measure,
    draw=lambda dataset: draw_map(dataset, OF_RATES),
    claims=[*claims(OF_RATES), *OF_NOISE_AND_EDGE],
    we_saw=lambda dataset: in_words(dataset, OF_RATES),
    complete=lambda dataset: set(WITH_RATES) <= set(dataset["norm"].values.tolist()),
    by_name=True,
)
