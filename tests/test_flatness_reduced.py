"""Sharpness at equal training loss: each claim comes out either way, and what is not there is said."""

import numpy as np
import pytest
import replicas
import xarray as xr

from normscope.paper.exhibits.figure1_reduced import gathered
from normscope.paper.exhibits.flatness_reduced import AT_LOSS, CLAIMS, EXHIBIT, sharpness_of
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED


def world(large: float, none: float = 1.0) -> xr.Dataset:
    """Every run at the gate; λ₁ is 100, that of BN at the large rate `large` times and that without BN `none` times as
    large, each scattered by a tenth."""
    dataset = replicas.drawn(replicas.WORLDS[0], 0.5, 0)
    random = np.random.default_rng(0)
    arms = dataset["arm"].values.astype(str)
    factor = np.where(np.char.endswith(arms, "batch@0.1"), large, np.where(np.char.find(arms, "none") > 0, none, 1.0))
    shape = (*dataset["outcome"].shape, 2)
    sharp = 100 * factor[:, None, None] * np.exp(0.1 * random.normal(size=shape))
    dims = ("arm", "seed", "loss")
    return dataset.assign(
        sharpness_at_loss=(dims, sharp),
        weight_norm_at_loss=(dims, np.full(shape, 20.0)),
        clean_train_loss_at_loss=(dims, np.full(shape, 0.009)),
    ).assign_coords(loss=[0.05, AT_LOSS])


@pytest.mark.parametrize(
    ("large", "flatter", "none", "alike"),
    [(0.3, REPRODUCED, 1.2, REPRODUCED), (2.0, NOT_REPRODUCED, 10.0, NOT_REPRODUCED)],
)
def test_claims_come_out_either_way(large: float, flatter: str, none: float, alike: str) -> None:
    dataset = world(large, none)
    verdicts = EXHIBIT.verdicts(dataset)
    assert len(verdicts) == len(CLAIMS) == 8
    assert {v.verdict for v in verdicts if "smaller" in v.statement} == {flatter}
    assert {v.verdict for v in verdicts if "no flatter" in v.statement} == {alike}
    assert [v.kind for v in verdicts].count("the paper's, at reduced size") == 2
    assert len(EXHIBIT.draw(dataset).axes) == 4


def test_measures_are_what_they_say() -> None:
    dataset, arm = world(0.3), "resnet20 batch@0.1"
    sharp = sharpness_of(dataset, arm, "sharpness")
    assert len(sharp) == 10
    np.testing.assert_allclose(sharpness_of(dataset, arm, "scaled"), 400 * sharp)
    np.testing.assert_allclose(sharpness_of(dataset, arm, "relative"), sharp / 0.009)


def test_what_never_came_there_settles_nothing() -> None:
    dataset = world(0.3)
    dataset["sharpness_at_loss"].loc[{"arm": "resnet20 batch@0.1", "seed": 3}] = np.nan
    [claim] = [v for v in EXHIBIT.verdicts(dataset) if v.statement.startswith("ResNet-20 with BN: the largest")]
    assert claim.verdict == NOT_ENOUGH and claim.diverged == 1
    assert EXHIBIT.verdicts(gathered([])) == []
    assert EXHIBIT.we_saw(gathered([])).startswith("0 of 0 finished runs")
    assert len(EXHIBIT.draw(gathered([])).axes) == 2
