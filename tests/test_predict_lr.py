"""Rates foretold from ten passes: what one step tells, the regression, its interval, and when nothing can be told."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from zoo import no_trace

import normscope as ns
from normscope.errors import InvalidConfig, InvalidModel
from normscope.rates.one_step import one_step
from normscope.rates.predicted import FEATURES, TARGETS, fit, packaged_fits
from normscope.rates.stable_lr import recipe_of

DATA = ns.load_data("digits")


def mlp(seed: int = 0) -> nn.Module:
    return ns.build_net("mlp4", norm="none", in_channels=1, image_size=8, seed=seed)


def batches(seed: int = 0):
    return ns.batches(DATA, 32, seed=seed)


def half_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) ** 2).mean() / 2


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_one_step_on_a_parabola_is_known_on_paper(optimizer: str) -> None:
    """ℓ(θ − α g) = ℓ − α |g|² + α²/2 gᵀHg: it is back where it started at 2 |g|² / gᵀHg."""
    torch.manual_seed(0)
    model, x = nn.Linear(6, 1, bias=False), torch.randn(20, 6) * torch.logspace(-1, 0, 6)
    hessian = x.T @ x / len(x)
    weight = model.weight.detach()[0]
    gradient = hessian @ weight
    slope, bend = float(gradient @ gradient), float(gradient @ hessian @ gradient)
    seen = one_step(model, x, recipe_of(optimizer=optimizer, steps=2, loss_fn=half_square))
    loss = float(weight @ hessian @ weight) / 2
    top = (slope + math.sqrt(slope**2 + 2 * bend * 999 * loss)) / bend
    assert abs(seen.edge - math.log10(2 * slope / bend)) < 0.1  # four passes, bisected and interpolated
    assert abs(seen.top - math.log10(top)) < 0.1
    assert math.isclose(seen.gradient_norm, math.sqrt(slope), rel_tol=1e-5)


def test_ten_passes_and_no_trace() -> None:
    model, passes = mlp(), 0

    def counted(_model: nn.Module, batch) -> torch.Tensor:
        nonlocal passes
        passes += 1
        return nn.functional.cross_entropy(_model(batch[0]), batch[1])

    with no_trace(model):
        told = ns.predict_lr(model, batches(), optimizer="adam", loss_fn=counted)
    assert passes + 1 == int(told["passes"]) <= 10  # and the one backward


def test_what_is_foretold_holds_what_was_measured() -> None:
    """`stable_lr` gives 0.2 and 0.0063 (0.004 to 0.01) on this network in 50 steps of two seeds."""
    told = ns.predict_lr(mlp, batches, optimizer="adam", lr=1.0)
    assert told["known"].item() and told["reason"].item() == ""
    for name, measured in (("lr_stable", 0.2), ("lr_recommended", 0.0063)):
        low, middle, high = (float(told[name + end]) for end in ("_low", "", "_high"))
        assert low <= measured <= high and low < middle < high
    rising = [
        float(ns.predict_lr(mlp, batches, optimizer="adam", lr=lr)["diverges"]) for lr in (1e-3, 0.05, 0.3, 2, 50)
    ]
    assert rising == sorted(rising) and rising[0] < 0.1 and rising[-1] > 0.9
    assert math.isnan(float(ns.predict_lr(mlp, batches, optimizer="adam")["diverges"]))


def test_it_says_when_it_cannot_know() -> None:
    other = ns.predict_lr(mlp, batches, optimizer="rmsprop", lr=0.1)
    assert not other["known"].item() and other["reason"].item().startswith("RMSprop was not measured")
    assert all(math.isnan(float(other[name])) for name in (*TARGETS, "lr_stable_low", "diverges"))
    huge = mlp()
    with torch.no_grad():
        for p in huge.parameters():
            p *= 30
    strange = ns.predict_lr(huge, batches(), optimizer="sgd")
    assert "nothing like it was measured" in strange["reason"].item()
    falling = nn.Linear(4, 1)
    never = ns.predict_lr(falling, [torch.randn(8, 4)], optimizer="sgd", loss_fn=lambda m, x: -m(x).abs().mean() - 1)
    assert "does not fall and then rise" in never["reason"].item() and math.isnan(float(never["edge"]))


def test_refused() -> None:
    with pytest.raises(InvalidConfig, match="lr is -1"):
        ns.predict_lr(mlp, batches, optimizer="sgd", lr=-1.0)
    with pytest.raises(InvalidModel, match="zero everywhere"):
        ns.predict_lr(nn.Linear(2, 1), [torch.zeros(3, 2)], optimizer="sgd", loss_fn=lambda m, x: 0 * m(x).sum() + 1)


def test_the_interval_holds_nine_of_ten_architectures() -> None:
    """Forty architectures of three rows each, off by an amount that all rows of one share; 200 fresh ones."""
    weights, held = np.arange(1.0, len(FEATURES) + 1), []
    for seed in range(30):
        random = np.random.default_rng(seed)
        names = np.repeat([f"net {i}" for i in range(40)], 3)
        features = random.normal(size=(120, len(FEATURES)))
        made = fit(features, features @ weights - 1 + np.repeat(random.normal(size=40), 3), names)
        fresh = random.normal(size=(200, len(FEATURES)))
        rates = fresh @ weights - 1 + random.normal(size=200)
        held.append(
            np.mean([low <= x <= high for x, (low, high) in zip(rates, map(made.interval, fresh), strict=True)])
        )
        assert math.isclose(made.shares.sum(), 1)
    assert 0.87 <= np.mean(held) <= 0.95  # one repetition scatters by 0.05


def test_without_noise_the_regression_is_exact_in_the_limit() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(400, len(FEATURES)))
    made = fit(features, features[:, 0] * 2 + 1, np.asarray([f"net {i}" for i in range(400)]))
    assert abs(made(np.asarray([0.5, *[0.0] * (len(FEATURES) - 1)])) - 2) < 0.02  # the ridge pulls by 1 row of 400
    assert made.probability_below(np.zeros(len(FEATURES)), 0.5) < 0.01
    assert made.probability_below(np.zeros(len(FEATURES)), 1.5) > 0.99


def test_the_table_in_the_package_has_many_architectures() -> None:
    for one in packaged_fits().values():
        assert one.architectures >= 15
        assert np.isfinite(one.residuals).all()


def test_quick_on_the_command_line(run_normscope, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import normscope as ns\nnet = lambda: ns.build_net('mlp4', norm='none', in_channels=1, image_size=8)\n"
    )
    monkeypatch.chdir(tmp_path)
    code, out, err = run_normscope("check", "mine.py:net", "--quick", "--optimizer", "adam", "--lr", "0.01")
    lines = out.splitlines()
    assert code == 0 and not err
    assert lines[1].startswith("Train at about 0.0") and lines[2].startswith("Training is stable up to about ")
    assert "Your rate 0.01 diverges with a probability of " in lines[3] and "Predicted" in lines[4]
    assert not (tmp_path / "check").exists()
    code, out, err = run_normscope("check", "mine.py:net", "--quick", "--warmup", "5")
    assert code == 2 and "--quick predicts 100 plain steps and takes no --warmup" in err
    code, out, _ = run_normscope("check", "mine.py:net", "--quick", "--optimizer", "adagrad")
    assert code == 0 and "cannot be told from initialization: Adagrad was not measured" in out


def test_the_table_is_json_of_measured_rows() -> None:
    from importlib.resources import files

    rows = json.loads((files("normscope.rates") / "measured_rates.json").read_text(encoding="utf-8"))["rows"]
    assert len({(row["architecture"], row["optimizer"]) for row in rows}) == len(rows) >= 40
