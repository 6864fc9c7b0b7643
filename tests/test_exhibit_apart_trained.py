"""Batch norm's parts trained to the end: the frozen protocol, its records, and every claim both ways."""

from pathlib import Path

import numpy as np
import xarray as xr

from normscope.descent.outcome import Outcome
from normscope.paper.exhibits.apart_trained import ARMS, EFFECTS, EXHIBIT, LRS, TRAINED, best_lr, end, name_of, share
from normscope.paper.exhibits.figure1_reduced import gathered
from normscope.paper.reduced import configs
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED
from normscope.sweeps.record import read_record
from normscope.sweeps.store import config_of
from normscope.training.config import key

RUNS = Path(__file__).parents[1] / "results" / "reduced" / "training" / "runs"


def as_if_trained(ends: dict[str, dict[float, float]]) -> xr.Dataset:
    """All runs finished, with these accuracies by rung and rate, which scatter by a tenth of a point."""
    dataset = gathered([], ARMS)
    dataset["outcome"][:] = Outcome.LEARNS.value
    for rung, at in ends.items():
        for lr, accuracy in at.items():
            for name in ("test_accuracy", "held_out_accuracy"):
                dataset[name].loc[{"arm": name_of(rung, lr)}] = accuracy + np.array([-0.1, 0, 0.1])
    return dataset


BOUGHT = {0.01: 46.0, 0.1: 50.0, 0.3: 48.0}
NOT_BOUGHT = {0.01: 45.0, 0.1: 40.0, 0.3: 10.0}
AS_PREDICTED = {
    **{"none": NOT_BOUGHT, "batch": BOUGHT, "batch_mean": NOT_BOUGHT},
    **{"batch_std": BOUGHT, "batch_detached": BOUGHT, "skipinit": NOT_BOUGHT},
}


def test_the_protocol_is_the_frozen_one() -> None:
    """What was fixed before any of its runs but those of batch norm and no norm at 0.1 and 0.01."""
    assert LRS == (0.1, 0.3, 0.01) and len(ARMS) == 18 and len(list(configs(ARMS))) == 54
    predicted = {claim.statement.split(" buys ")[0]: claim.requirement for claim in EXHIBIT.claims}
    assert predicted == {
        "Centring alone (batch_mean)": "below 0.5",
        "Scaling alone (batch_std)": "above 0.5",
        "Statistics as constants backwards (batch_detached)": "above 0.5",
        "SkipInit (skipinit)": "below 0.5",
    }
    assert len(EXHIBIT.claims) == 4 * len(EFFECTS)


def test_runs_that_figure_1_has_are_the_same_ones() -> None:
    shared = [config for config in configs(ARMS) if config.norm in ("batch", "none") and config.init != "skipinit"]
    shared = [config for config in shared if config.lr in (0.1, 0.01)]
    assert len(shared) == 12 and {key(config) for config in shared} <= {config_key(path) for path in RUNS.glob("*")}


def config_key(path: Path) -> str:
    """Of a record, as its config gives it: also the name of its file."""
    found = key(config_of(read_record(path)))
    assert path.name == f"{found}.json"
    return found


def test_all_predictions_can_come_out() -> None:
    verdicts = EXHIBIT.verdicts(as_if_trained(AS_PREDICTED))
    assert len(verdicts) == 12 and {one.verdict for one in verdicts} == {REPRODUCED}


def test_all_predictions_can_fail() -> None:
    turned = {"batch": "none", "none": "batch"}
    others = {rung: BOUGHT if at is NOT_BOUGHT else NOT_BOUGHT for rung, at in AS_PREDICTED.items()}
    others |= {rung: AS_PREDICTED[rung] for rung in turned}
    assert {one.verdict for one in EXHIBIT.verdicts(as_if_trained(others))} == {NOT_REPRODUCED}


def test_nothing_is_settled_where_nothing_is_finished() -> None:
    nothing = gathered([], ARMS)
    assert {one.verdict for one in EXHIBIT.verdicts(nothing)} == {NOT_ENOUGH}
    assert EXHIBIT.we_saw(nothing) == "0 of 54 runs finished. Test accuracy at the end, in per cent: none yet."
    assert not EXHIBIT.draw(nothing).axes[1].texts


def test_one_rate_that_is_there_is_judged_before_the_best_is_known() -> None:
    some = as_if_trained(AS_PREDICTED)
    some["outcome"].loc[{"arm": name_of("batch_std", 0.3), "seed": 2}] = "not finished"
    verdicts = {one.statement: one for one in EXHIBIT.verdicts(some)}
    of = {
        effect: next(v for s, v in verdicts.items() if "batch_std" in s and EFFECTS[effect] in s) for effect in EFFECTS
    }
    assert (of["0.1"].verdict, of["0.3"].verdict, of["best"].verdict) == (REPRODUCED, NOT_ENOUGH, NOT_ENOUGH)
    assert "resnet20 batch_std@0.3: 2 of 3 runs finished" in of["best"].note


def test_the_best_rate_is_chosen_on_held_out_images_and_what_diverged_counts_as_guessing() -> None:
    dataset = as_if_trained(AS_PREDICTED)
    assert (best_lr(dataset, "batch"), best_lr(dataset, "none")) == (0.1, 0.01)
    dataset["held_out_accuracy"].loc[{"arm": name_of("batch", 0.3)}] = 60.0
    assert best_lr(dataset, "batch") == 0.3
    np.testing.assert_allclose(end(dataset, "best", "batch"), [47.9, 48, 48.1])
    dataset["outcome"].loc[{"arm": name_of("batch", 0.3), "seed": 0}] = Outcome.DIVERGED.value
    assert end(dataset, "0.3", "batch")[0] == 10 and best_lr(dataset, "batch") == 0.1


def test_a_share_is_taken_seed_by_seed() -> None:
    part, whole = share(as_if_trained({**AS_PREDICTED, "skipinit": {**NOT_BOUGHT, 0.1: 42.5}}), "0.1", "skipinit")
    np.testing.assert_allclose(part, 2.5)
    np.testing.assert_allclose(whole, 10)


def test_it_is_drawn_and_told() -> None:
    dataset = as_if_trained(AS_PREDICTED)
    accuracies, cells = EXHIBIT.draw(dataset).axes
    assert len(accuracies.get_legend_handles_labels()[1]) == len(TRAINED)
    assert [text.get_text() for text in cells.texts[6:9]] == ["0.00 ▼"] * 3
    assert "SkipInit 45.0 at 0.01, 40.0 at 0.1, 10.0 at 0.3." in EXHIBIT.we_saw(dataset)
