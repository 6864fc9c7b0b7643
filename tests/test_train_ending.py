"""What a run sees of its training images themselves, where it ends early, and how sharp the loss is on its way."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.data import load_data
from normscope.data.digits import load_digits
from normscope.errors import InvalidConfig
from normscope.model.loss import cross_entropy
from normscope.training.config import RunConfig
from normscope.training.ending import ended_early
from normscope.training.train import trained

QUICK = RunConfig(
    net="mlp3",
    data="digits",
    train_size=200,
    held_out=20,
    batch_size=20,
    epochs=20,
    lr=0.1,
    weight_decay=0.0,
    augment=False,
    precision="fp32",
    device="cpu",
    evaluate_train=2,
    evaluate_every=20,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_training_images_are_evaluated_as_they_are_in_evaluation_mode():
    config = replace(QUICK, epochs=4, augment=True)
    data = load_data("digits", train_size=200, held_out=20)
    over = trained(config, data)
    with torch.no_grad():
        logits = over.net.eval()(data.train_images)
    loss, accuracy = over.result["clean_train_loss"].values, over.result["clean_train_accuracy"].values
    assert np.isnan(loss).tolist() == [True, False, True, False]
    assert loss[-1] == pytest.approx(float(cross_entropy(logits, data.train_labels)), rel=1e-5)
    assert accuracy[-1] == float((logits.argmax(1) == data.train_labels).double().mean())


def test_a_trained_run_ends_early_and_says_so_and_a_longer_one_does_not():
    run = ns.train(replace(QUICK, end_early=True, milestones=(0.3,)), threads=1)
    whole = ns.train(replace(QUICK, milestones=(0.3,)), threads=1)
    assert run.attrs["ended_early"] == "trained" and whole.attrs["ended_early"] == ""
    over = int((run["steps"] > 0).sum())
    clean = whole["clean_train_loss"].values
    below = [epoch for epoch in range(20) if epoch >= 6 and clean[epoch] < 0.002]
    assert over == below[1] + 1 < 20
    assert run["evaluated"].values[over - 1] == 1 and run["test_accuracy"].notnull().values[over - 1]
    xr.testing.assert_equal(run["train_loss"][:over], whole["train_loss"][:over])


def test_a_dead_run_ends_after_ten_epochs():
    run = ns.train(replace(QUICK, net="mlp30", norm="none", lr=1e-3, end_early=True), threads=1)
    assert run.attrs["ended_early"] == "dead" and int((run["steps"] > 0).sum()) == 10
    assert run.attrs["outcome"] == "dead"


def test_what_ends_a_run():
    config = replace(QUICK, end_early=True)
    rows = [{"clean_train_loss": loss} for loss in [*[0.001] * 15, 0.001, math.nan, 0.001]]
    assert ended_early(config, rows, 2.3, 1.0) == "trained"
    assert ended_early(config, rows[:-1], 2.3, 1.0) == "", "one evaluation after the last drop, at 15 epochs"
    flat = [{"clean_train_loss": 2.31}] * 10
    assert ended_early(config, flat, 2.3, 1e-4) == "dead"
    assert ended_early(config, flat[:9], 2.3, 1e-4) == "", "not before ten epochs"
    assert ended_early(config, flat, 2.3, 0.1) == "", "the outputs depend on the input"
    assert ended_early(config, [{"clean_train_loss": 2.1}] * 10, 2.3, 1e-4) == "", "not near the constant's loss"


def test_sharpness_is_measured_at_the_first_evaluation_below_each_loss():
    levels = (0.5, 0.05)
    config = replace(QUICK, evaluate_train=1, sharpness_at=levels)
    run = ns.train(config, threads=1)
    loss = run["clean_train_loss"].values
    first = sorted({int(np.flatnonzero(loss <= level)[0]) for level in levels})
    assert np.flatnonzero(run["sharpness"].notnull()).tolist() == first

    data = load_data("digits", train_size=200, held_out=20)
    net = trained(replace(config, epochs=first[0] + 1, milestones=()), data).net
    found = ns.sharpness(
        net,
        (data.train_images, data.train_labels),
        loss_fn=lambda m, batch: cross_entropy(m.eval()(batch[0]), batch[1]),
        tolerance=1e-3,
    )
    assert run["sharpness"].values[first[0]] == pytest.approx(float(found["eigenvalue"][0]), rel=0.03)
    size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in net.parameters()))
    assert run["weight_norm"].values[first[0]] == pytest.approx(size, rel=1e-6)


def test_a_run_with_its_own_images_evaluated_goes_on_with_the_same_bits(tmp_path):
    config = replace(QUICK, end_early=True, sharpness_at=(0.5, 0.1), milestones=(0.3,))
    data = load_data("digits", train_size=200, held_out=20)

    class Killed(KeyboardInterrupt):
        pass

    whole = trained(config, data)
    for at in (3, 7):

        def kill(epochs: int, _: object, at: int = at) -> None:
            if epochs == at:
                raise Killed

        with pytest.raises(Killed):
            trained(config, data, checkpoint=tmp_path / "checkpoint", checkpoint_seconds=0.0, on_epoch=kill)
    again = trained(config, data, checkpoint=tmp_path / "checkpoint", checkpoint_seconds=0.0)
    xr.testing.assert_identical(again.result.drop_vars("seconds"), whole.result.drop_vars("seconds"))


def test_images_are_averaged_over_squares():
    raw, small = load_digits(), load_data("digits", image_size=4)
    pixels = raw.train_images[:50].astype(float).reshape(50, 1, 4, 2, 4, 2).mean((3, 5))
    std, mean = small.std[0], small.mean[0]
    np.testing.assert_allclose(small.train_images[:50].numpy() * std + mean, np.floor(pixels + 0.5), atol=1e-4)
    assert small.describe()["image_shape"] == [1, 4, 4] and small.net_shape()["image_size"] == 4
    with pytest.raises(InvalidConfig, match=r"image_size is 3: images of digits have 8 pixels a side.* 1, 2, 4"):
        load_data("digits", image_size=3)
    with pytest.raises(InvalidConfig, match="image_size is 64"):
        RunConfig(image_size=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end_early": True}, "evaluate_train is 0: end_early needs"),
        ({"sharpness_at": [0.1]}, "evaluate_train is 0: sharpness_at needs"),
        ({"sharpness_at": [0.1, 0.2], "evaluate_train": 1}, "give positive losses, falling"),
        ({"evaluate_train": -1}, "evaluate_train is -1"),
        ({"end_early": 1}, "give true or false"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(InvalidConfig, match=message):
        RunConfig(**options)
