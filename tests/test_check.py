"""check: the rates as stable_lr gives them, as it is and repaired; the answer in words; the report."""

import copy
import html
import json
import math
import multiprocessing
import os
import re
import signal
import sys
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from broken import build_seeded, by_name, digits, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import no_trace

import normscope as ns
from normscope.checkup.answer import WIDTH, answer
from normscope.checkup.as_json import check_json
from normscope.checkup.conclusion import conclusion
from normscope.checkup.headline import headline
from normscope.checkup.limits import HEALTHY
from normscope.checkup.repairs import DEFAULT_REPAIRS, REPAIRS, fitting_repairs, repairs
from normscope.checkup.report import page_of
from normscope.checkup.rows import rows
from normscope.diagnosis.finding import Finding, findings_dataset
from normscope.errors import DataError, InvalidBatch, InvalidConfig, InvalidModel, NormscopeError, ResultError
from normscope.model.build import eager
from normscope.nets.inits import init_
from normscope.rates.evaluated import has_running_averages, losses_by_mode
from normscope.rates.recommended import Sure
from normscope.rates.search import Found
from normscope.rates.stable_lr import recipe_of
from normscope.rates.starting_point import Starts
from normscope.statistics.numbers import number

STEPS, SEEDS = 16, 2

# What is measured by hand has as many threads as what `check` measures, whose processes have one.
pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def batches() -> list[Any]:
    return by_name("healthy MLP").batches()[:STEPS]


def build(seed: int) -> nn.Module:
    return build_seeded(partial(mlp, width=16), seed)


def with_batch_norm(seed: int) -> nn.Module:
    """The same network written with batch norm, and with it in front of the last layer."""
    first, _, second, _, last = build(seed)
    return nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), second, nn.BatchNorm1d(16), nn.ReLU(), last)


def with_final_norm(seed: int) -> nn.Module:
    return nn.Sequential(*list(build(seed))[:4], nn.BatchNorm1d(16), build(seed)[4])


def with_orthogonal(seed: int) -> nn.Module:
    return init_(build(seed), "orthogonal", seed=seed)


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return ns.check(
        build,
        batches(),
        optimizer="sgd",
        steps=STEPS,
        seeds=SEEDS,
        repair=["final", "batch", "orthogonal", "zero_residual", "both", "batch+clipping"],
        data="<digits>",
        notes=["A note."],
    )


def by_hand(made: Any, **options: Any) -> xr.Dataset:
    return ns.stable_lr(made, batches(), optimizer="sgd", steps=STEPS, seeds=SEEDS, **options)


@pytest.mark.parametrize(
    ("node", "made", "options"),
    [
        ("as_it_is", build, {}),
        ("repairs/batch", with_batch_norm, {}),
        ("repairs/final", with_final_norm, {}),
        ("repairs/orthogonal", with_orthogonal, {}),
        ("repairs/both", build, {"warmup": 3, "clip_norm": 1.0}),
        ("repairs/batch+clipping", with_batch_norm, {"clip_norm": 1.0}),
    ],
)
def test_rates_equal_those_of_the_model_built_by_hand(
    tree: xr.DataTree, node: str, made: Any, options: dict[str, Any]
) -> None:
    measured, expected = tree[f"{node}/rates"].to_dataset(), by_hand(made, **options)
    for name in ("outcome", "loss", "lr_stable", "lr_usable", "best_at_horizon"):
        np.testing.assert_array_equal(measured[name].values, expected[name].values, err_msg=name)


def test_the_tree_says_what_each_variant_came_to(tree: xr.DataTree) -> None:
    by_variant = {row.variant: row for row in rows(tree)}
    assert list(by_variant) == ["as it is", "final", "batch", "orthogonal", "zero_residual", "both", "batch+clipping"]
    refused = by_variant["zero_residual"]
    assert refused.status == "refused" and "residual" in refused.reason and math.isnan(refused.lr_stable)
    for name, row in by_variant.items():
        if row.status == "measured":
            rates = tree["as_it_is/rates" if name == "as it is" else f"repairs/{name}/rates"]
            assert row.lr_stable == float(rates["lr_stable"])
            np.testing.assert_equal(row.lr_usable, float(rates["lr_usable"]))
    assert "repairs/zero_residual" not in tree
    assert {"evidence", "output_gradients", "rates"} == set(tree["repairs/batch"].children)


def test_check_leaves_a_given_model_untouched() -> None:
    model, taken = build(0), batches()
    with no_trace(model, taken):
        ns.check(model, taken, optimizer="adam", steps=4, seeds=1, repair=["batch"])


def test_the_answer_fits_a_screen_and_says_what_matters(tree: xr.DataTree) -> None:
    text = answer(tree)
    assert max(map(len, text.splitlines())) <= WIDTH and len(text.splitlines()) <= 28
    assert text.startswith("build on <digits>: 1,482 parameters, sgd, 16 steps, 2 seeds\n")
    assert headline(tree) in " ".join(text.split()) and headline(tree).startswith("Train at ")
    assert "batch norm before the last layer" in text and "warmup over 3 steps, clipping at 1" in text
    assert "refused: init 'zero_residual'" in text and "A note." in text
    assert re.search(r"What each repair would buy +train at +loss +stable to +learns to\n  as it is +[\d.≈ ]+", text)


@pytest.mark.parametrize("width", [59, 79, 99, 119])
def test_the_answer_is_as_wide_as_asked_and_cuts_no_word(tree: xr.DataTree, width: int) -> None:
    text = answer(tree, width=width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    words = " ".join(text.split())
    for row in rows(tree):
        assert all(word in words for word in [*row.title.split(), *row.reason.split()]), row.title
    assert " ".join(headline(tree).split()) in words


def summary(**columns: list[Any]) -> xr.DataTree:
    """A tree of a model as it is and one repair each column after the first."""
    count = len(columns["lr_recommended"])
    found = ["nowhere" if math.isnan(lr) else "learns on every seed" for lr in columns["lr_recommended"]]
    defaults: dict[str, list[Any]] = {
        "title": ["as it is", *(f"repair {i}" for i in range(1, count))],
        "status": ["measured"] * count,
        "reason": [""] * count,
        "cut": [False] * count,
        "lr_recommended_found": found,
        "lr_stable": [1.0] * count,
        "lr_usable": [0.5] * count,
        "lr_stable_found": ["bracketed"] * count,
        "lr_usable_found": ["bracketed"] * count,
        "best_low": columns["lr_recommended"],
        "best_high": columns["lr_recommended"],
        "horizon_loss": [1.0] * count,
    }
    variants = ["as it is", *(f"r{i}" for i in range(1, count))]
    columns = {**defaults, **columns}
    dataset = xr.Dataset({k: ("variant", v) for k, v in columns.items()}, {"variant": variants}, {"steps": 100})
    return xr.DataTree(dataset)


def test_the_conclusion_names_what_lowers_the_loss_most() -> None:
    nan = math.nan
    assert conclusion(summary(lr_recommended=[0.1])) == ""
    assert conclusion(summary(lr_recommended=[0.1, 0.2])) == "None of these repairs lowers the loss after 100 steps."
    found = conclusion(summary(lr_recommended=[0.1, 0.2, 1.0], horizon_loss=[1.0, 0.2, 0.5]))
    assert found == (
        "Most is bought by repair 1, in the first 100 steps: loss 0.2 at 0.2, in place of 1 at 0.1. "
        "The largest rate to train at comes with repair 2: loss 0.5 at 1, in place of 1 at 0.1."
    )
    found = conclusion(summary(lr_recommended=[nan, 0.2, nan], horizon_loss=[2.3, 0.2, 2.3]))
    assert found == "Most is bought by repair 1, in the first 100 steps: it lowers the loss, to 0.2 at 0.2."
    found = conclusion(summary(lr_recommended=[0.1, nan], horizon_loss=[2.3, nan]))
    assert found.startswith("None of these repairs")


def test_repairs_that_buy_as_much_are_named_beside_the_best() -> None:
    found = conclusion(summary(lr_recommended=[0.1, 0.2, 0.2, 0.2], horizon_loss=[1.0, 0.2, 0.21, 0.3]))
    assert found.startswith("Most is bought by repair 1") and found.endswith("As good, within a tenth: repair 2.")


@pytest.mark.parametrize(
    ("mended", "diverged", "constant", "begins"),
    [
        (0.02, False, 2.3, "Most is bought by mending what is wrong: loss 0.02 after 2 steps. Of these "),
        (0.2, False, 2.3, "Of these repairs, most is bought by repair 1, "),
        (0.02, True, 2.3, "Of these repairs, most is bought by repair 1, "),
        (0.02, False, 1.1, "Of these repairs, most is bought by repair 1, "),
    ],
)
def test_a_fault_mended_stands_before_the_best_repair(mended: float, diverged: bool, constant: float, begins) -> None:
    """Where its loss proves it; else, or where it is another loss, no repair is called the best of all."""
    tree = summary(lr_recommended=[0.1, 0.2], horizon_loss=[1.0, 0.2])
    for name, end, level, over in (("as_it_is", 2.3, 2.3, False), ("mended", mended, constant, diverged)):
        values = {"score": 0.5, "diverged": over, "constant_loss": level}
        tree[f"as_it_is/training/{name}"] = xr.DataTree(xr.Dataset({"loss": ("step", [2.3, end]), **values}))
    assert conclusion(tree).startswith(begins)


def test_what_batch_norm_costs_in_evaluation_mode_is_said() -> None:
    columns = {"lr_recommended": [0.1, 0.2], "horizon_loss": [1.0, 0.2], "train_mode_loss": [math.nan, 0.2]}
    found = conclusion(summary(**columns, eval_loss=[math.nan, 1.5]))
    assert "But in evaluation mode, by running averages, the loss of repair 1 is 1.5, not 0.2." in found
    assert "evaluation" not in conclusion(summary(**columns, eval_loss=[math.nan, 0.21]))


def test_running_averages_are_judged_in_evaluation_mode() -> None:
    """Two examples a batch: what batch norm learns by their statistics does not hold by running averages."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 2, 6, generator=generator)
    batches = [(x + 3 * torch.randn(1, generator=generator), (x.sum(1) > 0).long()) for x in inputs]
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    before = copy.deepcopy(net.state_dict())
    starts = Starts(net, batches, 30, loss_fn=None, fine_tuning=False)
    evaluated, trained = losses_by_mode(starts, recipe_of(optimizer="sgd", steps=30), 0.1)
    assert evaluated != trained and has_running_averages(net) and not has_running_averages(nn.Linear(2, 2))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    twin = copy.deepcopy(net).train()
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    walked = starts.batches(0)
    for x, y in islice(walked, 30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
    following = list(islice(walked, 10))
    with torch.no_grad():
        mean = sum(float(nn.functional.cross_entropy(twin.eval()(x), y)) for x, y in following) / 10
    assert evaluated == pytest.approx(mean, rel=1e-6)


def test_nothing_is_concluded_of_what_there_was_no_time_for() -> None:
    columns = {"lr_recommended": [0.1, 0.1, 0.2], "horizon_loss": [1.0, 0.1, 0.2]}
    tree = summary(**columns, cut=[True, False, False])
    assert conclusion(tree) == "What the repairs buy is not known: the model as it is was not measured to its end."
    assert headline(tree).startswith("Out of time: the rates as it is were not measured to the end.")
    tree = summary(**columns, cut=[False, True, False])
    assert conclusion(tree) == (
        "Of the repairs measured to their end, most is bought by repair 2, in the first 100 steps: "
        "loss 0.2 at 0.2, in place of 1 at 0.1."
    )
    assert headline(tree).startswith("Out of time: repair 1 was not measured to the end.")
    tree = summary(**columns, cut=[False, True, True])
    assert conclusion(tree) == "No repair was measured to its end."


@pytest.mark.parametrize(
    ("losses", "helps"), [((-1.5, -3.0), True), ((-2.0, -1.5), False), ((-1.5, -1.6), False), ((0.5, -1.0), True)]
)
def test_losses_below_zero_are_compared_by_their_difference(losses: tuple[float, float], helps: bool) -> None:
    found = conclusion(summary(lr_recommended=[0.1, 0.1], horizon_loss=list(losses)))
    assert found.startswith("Most is bought by repair 1") == helps


def test_a_larger_rate_at_a_higher_loss_is_no_help() -> None:
    found = conclusion(summary(lr_recommended=[0.1, 25.0], horizon_loss=[0.084, 0.46]))
    assert found == "None of these repairs lowers the loss after 100 steps."


def test_boundaries_are_told_as_they_were_found() -> None:
    tree = summary(
        lr_recommended=[0.1, math.nan, 0.1],
        lr_usable=[0.1, math.nan, 0.1],
        lr_usable_found=["bracketed", "nowhere", "bracketed"],
        lr_stable=[math.inf, math.nan, 0.3],
        lr_stable_found=["above the range", "below the range", "unfinished"],
    )
    assert [(row.train_at, row.stable, row.usable) for row in rows(tree)] == [
        ("0.1", "any tried", "0.1"),
        ("nowhere", "–", "nowhere"),
        ("0.1", "≈ 0.3", "0.1"),
    ]


RATES = st.sampled_from([1e-4, 0.01, 0.5, 3.0, math.nan])
LOSSES = st.sampled_from([-1.0, 0.0, 0.2, 1.0, 2.3, math.nan])
VARIANT = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["measured", "measured", "refused", "left out"]),
        "cut": st.booleans(),
        "lr_recommended": RATES,
        "lr_recommended_found": st.sampled_from([sure.value for sure in Sure]),
        "lr_stable": st.one_of(RATES, st.just(math.inf)),
        "lr_stable_found": st.sampled_from([found.value for found in Found]),
        "lr_usable": st.one_of(RATES, st.just(math.inf)),
        "lr_usable_found": st.sampled_from([found.value for found in Found]),
        "horizon_loss": LOSSES,
    }
)


def as_the_search_tells(variant: dict[str, Any]) -> dict[str, Any]:
    """What cannot be: a rate that was found nowhere, a boundary above the range that is a number."""
    one = dict(variant)
    if (one["lr_recommended_found"] == "nowhere") or math.isnan(one["lr_recommended"]):
        one["lr_recommended"] = math.nan
        one["lr_recommended_found"] = "nowhere" if one["lr_recommended_found"] == "nowhere" else "unfinished"
    for name in ("lr_stable", "lr_usable"):
        if one[f"{name}_found"] == "above the range":
            one[name] = math.inf
        elif one[f"{name}_found"] in ("below the range", "nowhere"):
            one[name] = math.nan
        elif math.isinf(one[name]) or (one[f"{name}_found"] == "bracketed" and math.isnan(one[name])):
            one[name] = 0.3
    if one["status"] != "measured":
        one |= {name: math.nan for name in ("lr_recommended", "lr_stable", "lr_usable", "horizon_loss")}
        one |= {"lr_recommended_found": "", "lr_stable_found": "", "lr_usable_found": ""}
        one["cut"] = one["status"] == "left out"
    return one


@settings(deadline=None, max_examples=100)
@given(st.lists(VARIANT, min_size=1, max_size=4), st.booleans())
def test_no_answer_contradicts_itself(variants: list[dict[str, Any]], faulty: bool) -> None:
    made = [as_the_search_tells({**v, **({"status": "measured"} if i == 0 else {})}) for i, v in enumerate(variants)]
    tree = summary(**{name: [one[name] for one in made] for name in made[0]})
    tree.attrs |= {"model": "net", "parameters": 1, "optimizer": "sgd", "seeds": 3}
    found = [Finding("curvature", "curvature limits the rates", "Long steps overshoot.", "", fault=False)]
    tree["findings"] = xr.DataTree(
        findings_dataset([Finding("dead", "units are dead", "No gradient.", "Norms."), *found] if faulty else found)
    )
    text = " ".join(answer(tree).split())
    assert "nan" not in text.split() and "inf" not in text.split() and "up to inf" not in text
    assert not ("Most is bought" in text and "None of the" in text)
    assert not (HEALTHY in text and ("No rate tried lowers" in text or "diverges at every rate" in text))
    assert not ("Train at" in text and "No rate tried lowers" in text)
    assert "1 times" not in text
    cut = [one["cut"] for one in made]
    first = text.split("seeds ", 1)[1]
    assert first.startswith("Out of time: ") == any(cut)
    named = re.search(r"[Mm]ost is bought by (repair \d)", text)
    if named:
        row = rows(tree)[int(named[1][-1])]
        assert not row.cut and not cut[0] and row.status == "measured"
        assert not row.horizon_loss >= rows(tree)[0].horizon_loss or not rows(tree)[0].lr_recommended > 0


def test_a_budget_skips_what_does_not_fit_and_says_so_first() -> None:
    tree = ns.check(build, batches(), optimizer="sgd", steps=STEPS, seeds=1, repair=["batch"], budget_seconds=1e-3)
    as_it_is, left_out = rows(tree)
    assert headline(tree).startswith("Out of time: the rates as it is, ")
    assert as_it_is.status == "measured" and as_it_is.lr_stable_found == "unfinished"
    assert left_out.status == "left out" and "batch norm everywhere" in headline(tree)
    assert HEALTHY not in answer(tree)


def test_the_page_opens_with_the_answer_and_then_what_repairs_buy(tree: xr.DataTree) -> None:
    lead = page_of(tree).lead
    assert headline(tree) in lead[0] and conclusion(tree) not in lead[0]
    assert lead[1:] == [conclusion(tree), "A note."]


def test_json_has_the_whole_answer_and_survives_a_file(tree: xr.DataTree, tmp_path: Any) -> None:
    text = check_json(tree)
    told = json.loads(text)
    assert (told["schema"], told["version"], told["headline"]) == ("normscope.check", 1, headline(tree))
    assert [one["name"] for one in told["variants"]] == [row.variant for row in rows(tree)]
    for one, row in zip(told["variants"], rows(tree), strict=True):
        for name in ("lr_stable", "lr_usable", "lr_recommended", "horizon_loss"):
            value = getattr(row, name)
            assert one[name] == (value if math.isfinite(value) else None)
    assert told["own_rate"] is None and told["rates_tried"] and told["cut"] == []
    assert [f["name"] for f in told["findings"]] == tree["findings"]["finding"].values.tolist()
    assert told["training"]["as it is"]["steps"] > 0
    ns.save(tree, tmp_path / "check.nc")
    assert check_json(ns.load_tree(tmp_path / "check.nc")) == text


def test_a_notebook_shows_the_answer_and_its_figures(tree: xr.DataTree) -> None:
    shown = tree._repr_html_()
    assert shown.startswith("<pre>") and html.unescape(shown.split("</pre>")[0][5:]) == answer(tree)
    assert shown.count("<figure ") == 2 and "<svg" in shown and "<summary>" in shown
    assert "<summary>All that was measured" not in tree["as_it_is"]._repr_html_()  # a node is a tree of arrays


# One's own rate


@pytest.mark.parametrize(
    ("lr", "judgement", "words"),
    [
        (30.0, "diverges", r"times above what it takes: diverges at step \d+, first in \d; stable at"),
        (1e-4, "too small", "is too small for 16 steps: at .+ the loss ends at"),
        (0.3, "good", "is (good|not what is wrong): its loss after 16 steps is"),
    ],
)
def test_ones_own_rate_is_judged(lr: float, judgement: str, words: str) -> None:
    tree = ns.check(build, batches(), optimizer="sgd", lr=lr, steps=STEPS, seeds=2)
    own = tree["own_rate"]
    assert own["judgement"].item() == judgement
    assert re.match(f"Your rate {re.escape(number(lr))} .*{words}", headline(tree))
    assert headline(tree) in " ".join(answer(tree).split())
    assert int(tree["as_it_is/rates"]["train_steps"]) <= 2.6 * STEPS * 3
    assert len(rows(tree)) == 1
    if judgement == "diverges":
        assert float(own["passes"]) < lr and own["fails"].item() <= lr
    again = ns.check(build, batches(), optimizer=torch.optim.SGD(build(0).parameters(), lr), steps=STEPS, seeds=2)
    xr.testing.assert_equal(again["own_rate"].to_dataset(), own.to_dataset())


def test_with_a_rate_of_ones_own_the_diagnosis_trains_as_its_user_does() -> None:
    """Forty steps are too few for a squared error of classes; the user's three hundred are not."""
    images = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.nn.functional.one_hot(images[:, :2].argmax(1), 2).float()
    pairs = list(zip(images.split(32), targets.split(32), strict=True))

    def squares(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    def small(seed: int) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    tree = ns.check(small, pairs, optimizer="adam", loss_fn=squares, lr=1e-2, steps=300, seeds=1)
    assert json.loads(check_json(tree))["training"]["as it is"]["steps"] == 300
    assert not tree["findings"]["fault"].any() and "is good" in headline(tree)


def test_an_interruption_keeps_what_is_measured() -> None:
    calls = 0

    def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled() and "forward" not in vars(model)
        if calls == 200:
            raise KeyboardInterrupt
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    tree = ns.check(
        build, batches(), optimizer="sgd", steps=STEPS, seeds=1, loss_fn=loss_fn, repair=["batch"], workers=1
    )
    assert headline(tree).startswith("Interrupted: ")
    assert tree["as_it_is/rates"].sizes["lr"] > 0
    assert rows(tree)[1].reason == "interrupted"


@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="no process is forked")
def test_an_interruption_keeps_what_is_measured_at_once() -> None:
    """Ctrl-C reaches the parent alone while two variants are at work; both give what they have."""
    parent, calls = os.getpid(), 0
    first = multiprocessing.Semaphore(1)  # both come to their 200th call; a second Ctrl-C is another matter

    def loss_fn(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        nonlocal calls
        calls += os.getpid() != parent
        if calls == 200 and first.acquire(block=False):
            os.kill(parent, signal.SIGINT)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    tree = ns.check(
        build,
        batches(),
        optimizer="sgd",
        steps=STEPS,
        seeds=1,
        loss_fn=loss_fn,
        repair=["clipping", "batch"],
        workers=2,
    )
    assert headline(tree).startswith("Interrupted: the rates as it is, what limits it, ")
    assert tree["as_it_is/rates"].sizes["lr"] > 0
    assert tree["as_it_is/rates"]["steps_taken"].values.sum() < 8 * STEPS * 3
    assert [row.reason for row in rows(tree)][2] == "interrupted"


def test_one_batch_gives_rates_with_a_line_that_says_what_they_are() -> None:
    tree = ns.check(build, batches()[:1], optimizer="sgd", steps=STEPS, seeds=1, repair=[])
    assert float(tree["lr_recommended"][0]) > 0
    assert "one batch only" in " ".join(answer(tree).split())


class PostNorm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embed, self.body = torch.nn.Linear(8, 8), torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = torch.nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.embed(x.view(len(x), 8, 8))).mean(1))


def test_repairs_fit_the_model() -> None:
    assert fitting_repairs(build(0)) == DEFAULT_REPAIRS
    model, batch = PostNorm(), batches()[0]
    assert fitting_repairs(model) == ("pre_norm", "qk_norm", "small_output", "small_residual", "both")
    assert fitting_repairs(Words()) == ("pre_norm", "qk_norm", "small_output", "small_residual", "both")
    pre, _, output, residual, _ = repairs(fitting_repairs(model), steps=10)
    with no_trace(model, batch):
        changed = pre.apply(model, seed=0, batch=batch, loss_fn=None)
        assert all(layer.norm_first for layer in changed.body.layers) and changed.body.norm is not None
        small = output.apply(model, seed=0, batch=batch, loss_fn=None)
        torch.testing.assert_close(small.head.weight, 0.1 * model.head.weight)
        smaller = residual.apply(model, seed=0, batch=batch, loss_fn=None)
        weights = [m.body.layers[0].linear2.weight for m in (smaller, model)]
        torch.testing.assert_close(weights[0], weights[1] / 2)  # four branches
    with pytest.raises(InvalidConfig, match="norm_first"):
        pre.apply(build(0), seed=0, batch=batch, loss_fn=None)


def test_report_is_one_page_from_the_tree_alone(tree: xr.DataTree, tmp_path: Any) -> None:
    saved = ns.save(tree, tmp_path / "check.nc")
    path = ns.report(tree, tmp_path / "page.html")
    again = ns.report(saved, tmp_path / "again.html")
    page = path.read_text()
    made = re.compile(r"on \d+ \w+ \d+, [\d:]+ UTC")
    assert made.sub("", page) == made.sub("", again.read_text())
    assert page.count("<svg") == page.count('role="img"') > 6 * 4, (
        "each variant has its pictures, and all say what they show"
    )
    assert "&lt;digits&gt;" in page and "<digits>" not in page
    assert (
        "http://" not in re.sub(r"http://(www\.w3|purl|creativecommons)\.org[\w/.#-]*", "", page)
        and "<script" not in page
    )
    for row in rows(tree):
        assert row.title in page
    with pytest.raises(ResultError, match="not of a check"):
        ns.report(xr.DataTree(), tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_repairs_are_parsed_by_name() -> None:
    batch, both, several = repairs(["batch", "both", "warmup+batch+orthogonal"], steps=50)
    assert (batch.parts, batch.warmup, batch.clip_norm, batch.changes_model) == (("batch",), 0, None, True)
    assert (both.parts, both.warmup, both.clip_norm, both.changes_model) == (("warmup", "clipping"), 10, 1.0, False)
    assert several.parts == ("orthogonal", "batch", "warmup")
    assert several.title(build(0)) == "orthogonal init, batch norm everywhere, warmup over 10 steps"
    assert set(DEFAULT_REPAIRS) <= set(REPAIRS)
    with pytest.raises(InvalidConfig, match="unknown repair 'bach': did you mean 'batch'"):
        repairs(["bach"], steps=50)
    with pytest.raises(InvalidConfig, match="asks twice"):
        repairs(["batch+final"], steps=50)


def test_a_title_says_that_the_models_own_norms_go() -> None:
    group, final = repairs(["group", "final"], steps=50)
    assert group.title(build(0)) == "group norm everywhere"
    assert group.title(with_batch_norm(0)) == "group norm instead of its norms"
    assert final.title(build(0)) == "batch norm before the last layer"
    assert final.title(with_batch_norm(0)) == "batch norm before the last layer alone, instead of its norms"


NOT_FOR_A_PLAIN_MLP = ("zero_residual", "skipinit", "fixup", "instance", "pre_norm", "qk_norm", "small_residual")


@pytest.mark.parametrize("name", [name for name in REPAIRS if name not in NOT_FOR_A_PLAIN_MLP])
def test_every_repair_can_be_made(name: str) -> None:
    (repair,) = repairs([name], steps=10)
    model, batch = build(0), batches()[0]
    with no_trace(model, batch):
        changed = repair.applied_to(build, batch=batch, loss_fn=None)(0)
        assert changed(batch[0]).shape == (32, 10)
        weights = changed.state_dict()
        same = all(key in weights and torch.equal(value, weights[key]) for key, value in model.state_dict().items())
        drawn = ("xavier_uniform", "xavier_normal", "kaiming_normal", "orthogonal", "weight_mean", "weight_std")
        assert same == (name not in (*drawn, "small_output"))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, as it compiles
def test_wrapped_models_are_measured_as_the_module_inside() -> None:
    model = build(0)
    assert eager(nn.DataParallel(model)) is model
    assert eager(torch.compile(model)) is model
    assert eager(nn.DataParallel(torch.compile(model))) is model
    assert isinstance(eager(lambda: torch.compile(build(0)))(0), nn.Sequential)
    inside = nn.Sequential(torch.compile(build(0)))
    with pytest.raises(InvalidModel, match="module '0' is compiled"):
        eager(inside)
    compiled = build(0)
    compiled.compile()
    with pytest.raises(InvalidModel, match="the model is compiled"):
        eager(compiled)


class Words(nn.Module):
    """Two inputs, dropout, attention; a mapping in, a loss out, as the transformers library has it."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.extra, self.head = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, *, input_ids: torch.Tensor, extra: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        x = self.norm(self.layer(self.words(input_ids))).mean(1) + self.extra(extra)
        logits = self.head(x)
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def mappings(dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(4, (8,), generator=generator) for _ in range(6)]
    return [
        {
            "input_ids": (y[:, None] * 5 + torch.randint(5, (8, 6), generator=generator)),
            "extra": torch.randn(8, 3, generator=generator).to(dtype),
            "labels": y,
        }
        for y in labels
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mappings_several_inputs_dropout_attention_and_half_precision(dtype: torch.dtype) -> None:
    tree = ns.check(
        lambda: Words().to(dtype), mappings(dtype), optimizer="adamw", steps=6, seeds=1, repair=["final", "clipping"]
    )
    assert [row.status for row in rows(tree)] == ["measured"] * 3
    assert tree.attrs["dtype"] == str(dtype).removeprefix("torch.")
    assert "AdamW" not in answer(tree) and "adamw" in answer(tree)


class Thing:
    """A batch of a kind of its own."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y


def test_batches_of_any_kind_with_a_loss_of_ones_own() -> None:
    things = [Thing(x, y) for x, y in batches()]
    tree = ns.check(
        build,
        things,
        optimizer="sgd",
        steps=6,
        seeds=1,
        repair=["batch"],
        loss_fn=lambda model, thing: nn.functional.cross_entropy(model(thing.x), thing.y),
    )
    assert [row.status for row in rows(tree)] == ["measured"] * 2


def raising(after: int) -> Any:
    yield from batches()[:after]
    raise OSError("disk on fire")


def endless() -> Any:
    while True:
        yield from batches()


class NoGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).detach()


class OutOfMemory(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB")


X = digits()[0][:32].flatten(1)


@pytest.mark.parametrize(
    ("model", "data", "error", "message"),
    [
        (lambda: 3, batches, InvalidModel, "gave a int, not an nn.Module"),
        (lambda a, b: mlp(), batches, InvalidModel, "build needs a, b"),
        (lambda: 1 / 0, batches, InvalidModel, "build raised ZeroDivisionError"),
        (build, list, InvalidBatch, "gives no batch"),
        (build, lambda: raising(3), DataError, "raised OSError after 3 of them: disk on fire"),
        (build, lambda: [(X[:, :5], torch.zeros(32).long())] * 3, InvalidBatch, "does not take this batch"),
        (build, lambda: [(X, torch.full((32,), 10))] * 3, InvalidBatch, "labels must lie in 0 to 9"),
        (NoGradient, batches, InvalidModel, "depends on no trainable parameter"),
        (lambda: OutOfMemory(64, 10), batches, NormscopeError, "out of memory"),
        (build, lambda: 5, InvalidBatch, "batches is a int"),
    ],
)
def test_bad_input_is_one_line(model: Any, data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        ns.check(model, data(), optimizer="sgd", steps=6, seeds=1, repair=[])
    assert "\n" not in str(raised.value)


def test_batches_that_never_end_are_taken_as_far_as_needed() -> None:
    tree = ns.check(build, endless(), optimizer="sgd", steps=6, seeds=1, repair=[])
    assert tree.attrs["different_batches"] == 6
    assert json.loads(tree["as_it_is/rates"].attrs["lr_range"])
