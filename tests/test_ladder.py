"""Batch norm's rungs: what was predicted of them, and how a share of its effect is taken."""

import numpy as np
import pytest
import xarray as xr

from normscope.paper.ladder import (
    AT_THE_START,
    EFFECTS,
    OF_NOISE_AND_EDGE,
    OF_RATES,
    PREDICTIONS,
    RUNGS,
    claims,
    edge_rank,
    share_of,
)
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED


def test_every_effect_is_predicted_for_centring_and_for_scaling() -> None:
    assert set(AT_THE_START) | set(OF_RATES) == set(EFFECTS) == set(PREDICTIONS)
    for predicted in PREDICTIONS.values():
        assert {"batch_mean", "batch_std"} <= set(predicted) <= set(RUNGS) - {"none", "batch"}


def test_what_holds_by_construction_is_not_predicted() -> None:
    """On the first batch their forward pass is batch norm's."""
    forward = {"batch_detached", "batch_first", "batch_running"}
    assert all(forward.isdisjoint(PREDICTIONS[effect]) for effect in ("slope", "common", "confidence"))


def ladder(values: dict[str, list[float]]) -> xr.Dataset:
    table = xr.DataArray(list(values.values()), dims=("norm", "seed"), coords={"norm": list(values)})
    return xr.Dataset({"lr_usable": table, "lr_stable": table, "edge_lr": table})


@pytest.mark.parametrize(
    ("rate", "mean", "std"),
    [
        ([0.3, 0.32, 0.28], NOT_REPRODUCED, REPRODUCED),
        ([0.012, 0.011, 0.013], REPRODUCED, NOT_REPRODUCED),
        ([0.1, 0.02, 0.9], NOT_ENOUGH, NOT_ENOUGH),
        ([0.3, np.nan, 0.3], NOT_ENOUGH, NOT_ENOUGH),
        ([0.3, np.inf, 0.3], NOT_ENOUGH, NOT_ENOUGH),
    ],
)
def test_a_share_is_judged_on_the_logarithm_of_the_rate(rate: list[float], mean: str, std: str) -> None:
    dataset = ladder({"none": [0.01, 0.011, 0.009], "batch": [1.0, 1.1, 0.9], "batch_mean": rate, "batch_std": rate})
    usable = [claim for claim in claims(("usable",)) if claim.scope.holds(dataset)]
    assert [claim.judged(dataset).verdict for claim in usable] == [mean, std]
    part, whole = share_of(dataset, "usable", "batch_std")
    assert part[0] == pytest.approx(np.log(rate[0] / 0.01)) and whole[0] == pytest.approx(np.log(100))


def test_the_noise_and_the_edge_can_come_out_either_way() -> None:
    noise, edge = OF_NOISE_AND_EDGE
    rates = {"none": [0.01, 0.011, 0.009], "batch": [1.0, 1.1, 0.9]}
    alike = ladder({**rates, "batch_ghost": [1.1, 1.0, 0.95]})
    apart = ladder({**rates, "batch_ghost": [0.1, 0.11, 0.09]})
    assert (noise.judged(alike).verdict, noise.judged(apart).verdict) == (REPRODUCED, NOT_REPRODUCED)
    turned = alike.assign(edge_lr=1 / alike["lr_stable"])
    assert edge_rank(alike) == pytest.approx([1.0] * 3)
    assert edge_rank(turned)[0] == pytest.approx(-1.0)
    assert edge.judged(turned).verdict == NOT_REPRODUCED
    assert np.isnan(edge_rank(alike.where(alike["norm"] != "batch"))).all()
