"""Figure 1 at reduced size: the frozen protocol, partial stores, every claim both ways, and replicas."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import replicas
import xarray as xr

from normscope.descent.outcome import Outcome
from normscope.paper import reduced
from normscope.paper.exhibits import figure1_reduced
from normscope.paper.exhibits.figure1_reduced import CLAIMS, EXHIBIT, at_gate, finished, gathered, passes
from normscope.paper.reduced import ARMS, PROTOCOL, configs
from normscope.results import load, save
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, VERDICTS, Verdict
from normscope.sweeps.record import RunRecord

AS_IN_THE_PAPER, NOT_SO = replicas.WORLDS
RESULTS = Path(__file__).parents[1] / "results" / "reduced"


@pytest.fixture
def dataset() -> xr.Dataset:
    return replicas.drawn(AS_IN_THE_PAPER, 0.5, 0)


def unfinished(dataset: xr.Dataset, arm: str, seeds: list[int]) -> xr.Dataset:
    """Without these runs."""
    dataset = dataset.copy(deep=True)
    for name in ("test_accuracy", "held_out_accuracy", "clean_train_accuracy"):
        dataset[name].loc[{"arm": arm, "seed": seeds}] = np.nan
    dataset["outcome"].loc[{"arm": arm, "seed": seeds}] = figure1_reduced.MISSING
    return dataset


def judged(dataset: xr.Dataset, words: str) -> Verdict:
    (found,) = [v for v in EXHIBIT.verdicts(dataset) if v.statement.startswith(words)]
    return found


def test_the_protocol_is_the_frozen_one() -> None:
    """What was fixed before any run that counts."""
    assert (reduced.GATE, reduced.GATE_SHARE, reduced.SAME) == (98.0, 0.8, 3.0)
    assert reduced.LARGE_GAINS == {"resnet20": 1.0, "resnet56": 2.0} and reduced.LARGE == 0.1
    assert reduced.SMALL == {"resnet20": 0.01, "resnet56": 0.003, "resnet110": 0.003}
    assert (reduced.SHARE_AT_SMALL, reduced.SHARE_OF_FINAL) == (1 / 3, 1 / 3)
    assert sum(arm.seeds for arm in ARMS) == 97 and len(list(configs())) == 97
    limits = {claim.statement[:3]: claim.requirement for claim in CLAIMS}
    assert (
        limits["(d)"] == "below 0.333" and limits["(e)"] == "above 0.5 of the seeds" and limits["(f)"] == "above 0.333"
    )


def test_what_the_paper_says_comes_out_as_reproduced(dataset: xr.Dataset, tmp_path: Path) -> None:
    verdicts = EXHIBIT.verdicts(dataset)
    assert len(verdicts) == len(CLAIMS) == 14
    assert {v.verdict for v in verdicts} == {REPRODUCED}
    assert {v.kind for v in verdicts} == {"the paper's, at reduced size"}
    again = load(save(dataset, tmp_path / "x.nc"))
    assert [v.verdict for v in EXHIBIT.verdicts(again)] == [v.verdict for v in verdicts]
    assert EXHIBIT.we_saw(dataset).startswith("97 of 97 runs finished")


@pytest.mark.parametrize("words", ["(a) ResNet-56, both", "(a) ResNet-56, one", "(b) ResNet-20", "(d)", "(e)", "(f)"])
def test_every_claim_can_fail(words: str) -> None:
    assert judged(replicas.drawn(NOT_SO, 0.5, 0), words).verdict == NOT_REPRODUCED


def test_the_large_rate_can_bring_nothing() -> None:
    ends = {**AS_IN_THE_PAPER.ends, "resnet56 batch@0.1": 41.0}
    dataset = replicas.drawn(replace(AS_IN_THE_PAPER, ends=ends), 0.5, 0)
    assert judged(dataset, "(b) ResNet-56").verdict == NOT_REPRODUCED


@pytest.mark.parametrize("net", list(reduced.SMALL))
def test_the_best_without_can_be_better(net: str) -> None:
    title = figure1_reduced.TITLES[net]
    ends = {**AS_IN_THE_PAPER.ends, f"{net} none@{reduced.SMALL[net]:g}": 60.0}
    dataset = replicas.drawn(replace(AS_IN_THE_PAPER, ends=ends), 0.5, 0)
    assert judged(dataset, f"(c) {title}").verdict == NOT_REPRODUCED
    assert judged(dataset, f"(a) {title}, both").verdict == NOT_REPRODUCED


def test_a_partial_store_settles_nothing_and_says_what_is_there(dataset: xr.Dataset) -> None:
    some = unfinished(dataset, "resnet20 none@0.01", [5, 6, 7, 8, 9])
    claim = judged(some, "(a) ResNet-20, both")
    assert claim.verdict == NOT_ENOUGH and claim.diverged == 5 and claim.seeds == 10
    assert "5 of 10 seeds not finished" in claim.measured and "[" in claim.measured
    assert "resnet20 none@0.01: 5 of 10 runs finished, 5 at the gate" in claim.note
    assert claim.seeds_needed == 3, "half a point of scatter, three points away"
    assert judged(some, "(b) ResNet-20").verdict == REPRODUCED, "its own arms are there"
    one = unfinished(dataset, "resnet56 batch@0.1", [7])
    assert {judged(one, words).verdict for words in ("(b) ResNet-56", "(d)", "(e)", "(f)")} == {NOT_ENOUGH}
    assert EXHIBIT.complete(dataset) and not EXHIBIT.complete(one)


def test_a_network_without_a_finished_run_is_judged_and_drawn_too() -> None:
    nothing = gathered([])
    verdicts = EXHIBIT.verdicts(nothing)
    assert {v.verdict for v in verdicts} == {NOT_ENOUGH}
    assert EXHIBIT.we_saw(nothing).startswith("0 of 97 runs finished")
    assert len(EXHIBIT.draw(nothing).axes) == 1


def test_an_arm_that_misses_the_gate_is_not_compared_and_shown_hollow(dataset: xr.Dataset) -> None:
    arm = "resnet20 none@0.01"
    dataset["clean_train_accuracy"].loc[{"arm": arm, "seed": [0, 1]}] = 90.0
    assert passes(dataset, arm), "eight of ten"
    claim = judged(dataset, "(a) ResNet-20, both")
    assert claim.verdict == REPRODUCED and claim.diverged == 0, "all its seeds are judged, failing ones included"
    hollow = [line for line in EXHIBIT.draw(dataset).axes[0].lines if line.get_markerfacecolor() == "none"]
    assert sum(len(line.get_xdata()) for line in hollow) == 2 + 3, "and the three dead at 0.1"
    dataset["clean_train_accuracy"].loc[{"arm": arm, "seed": 2}] = 90.0
    assert not passes(dataset, arm)
    assert judged(dataset, "(a) ResNet-20, both").diverged == 10
    assert judged(dataset, "(c) ResNet-20").verdict == NOT_ENOUGH, "no rate without is left"
    assert judged(dataset, "(b) ResNet-20").verdict == REPRODUCED


def test_what_diverged_counts_as_guessing(dataset: xr.Dataset) -> None:
    place = {"arm": "resnet56 final@0.03", "seed": [0]}
    dataset["outcome"].loc[place] = Outcome.DIVERGED.value
    assert figure1_reduced.end(dataset, "resnet56", "final", 0.03)[0] == 10


def test_the_best_rate_is_chosen_on_held_out_images_among_counted_arms(dataset: xr.Dataset) -> None:
    dataset["held_out_accuracy"].loc[{"arm": "resnet20 batch@0.003"}] = 99.0  # only described
    assert figure1_reduced.best_lr(dataset, "resnet20", "batch") == 0.1
    dataset["held_out_accuracy"].loc[{"arm": "resnet20 batch@0.01"}] = 98.0
    assert figure1_reduced.best_lr(dataset, "resnet20", "batch") == 0.01


def record(config, end: float) -> RunRecord:
    """A run of three epochs that was ended early, its last evaluation in the second."""
    values = {
        "steps": np.array([10, 10, 0]),
        "test_accuracy": np.array([np.nan, end, np.nan]),
        "held_out_accuracy": np.array([np.nan, end, np.nan]),
        "clean_train_accuracy": np.array([0.5, 1.0, np.nan]),
        "clean_train_loss": np.array([0.8, 0.03, np.nan]),
        "sharpness": np.array([np.nan, 7.0, np.nan]),
        "weight_norm": np.array([5.0, 6.0, np.nan]),
    }
    attrs = {"outcome": Outcome.LEARNS.value, "config": json.dumps(config.to_mapping())}
    return RunRecord(attrs, values, {name: (name, "1") for name in values})


def test_runs_are_gathered_by_arm_and_seed(monkeypatch) -> None:
    monkeypatch.setitem(PROTOCOL, "epochs", 3)
    wanted = [config for config in configs() if config.seed == 4 and config.net == "resnet20"]
    dataset = gathered([record(config, 0.4 + place / 100) for place, config in enumerate(wanted)])
    assert int(finished(dataset).sum()) == 3 and int(at_gate(dataset).sum()) == 3
    one = dataset.sel(arm="resnet20 batch@0.01", seed=4)
    assert float(one["test_accuracy"]) == pytest.approx(41) and int(one["epochs"]) == 2
    assert one["test_accuracy_of_epoch"].values[1] == pytest.approx(41)
    assert float(one["sharpness_at_loss"][0]) == 7 and float(one["clean_train_loss_at_loss"][0]) == 0.03
    assert np.isnan(one["sharpness_at_loss"][1])
    assert dataset["outcome"].sel(arm=ARMS[3].name, seed=4).item() == figure1_reduced.NOT_PLANNED


def test_the_simulation_of_replicas_is_the_committed_one() -> None:
    """The first replica of each world again: its verdicts are among those counted."""
    committed = json.loads((RESULTS / "replicas.json").read_text(encoding="utf-8"))
    assert set(committed["worlds"]) == {world.words for world in replicas.WORLDS}
    for world in replicas.WORLDS:
        counted = committed["worlds"][world.words]
        for scatter in (replicas.SCATTERS[1],):
            of = replicas.frequencies(world, scatter, seeds=[0])
            for statement, shares in counted[f"{scatter:g} points"].items():
                assert sum(shares.values()) == pytest.approx(1) and set(shares) == set(VERDICTS)
                (verdict,) = [word for word, share in of[statement].items() if share]
                assert shares[verdict] >= 1 / committed["replicas"] - 1e-9
