"""diagnose: each kind of fault in a program of its own, named first; its mended twin is left alone."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import no_trace

import normscope as ns
from normscope.descent.optimizers import optimizer_factory
from normscope.diagnosis.experiments import Needed, Step, is_needed
from normscope.diagnosis.facts import Facts, facts_of, with_levels
from normscope.diagnosis.fault import CATEGORIES, Repair, Suspicion, faults
from normscope.diagnosis.faults.labels import by_heart
from normscope.diagnosis.faults.sorted_batches import share_within
from normscope.diagnosis.faults.unregistered import registered, unregistered
from normscope.diagnosis.finding import Finding, as_findings, findings_dataset
from normscope.diagnosis.first_pass import first_pass
from normscope.diagnosis.outputs import Reach, chain, identify, loss_family, reach, target_kind
from normscope.diagnosis.program import Program, run
from normscope.diagnosis.words import findings_json, findings_text
from normscope.errors import InvalidBatch
from normscope.testing import assert_can_learn

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

Pair = tuple[Tensor, Tensor]


def inputs(rows: int = 256, width: int = 6) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(3))


def split(x: Tensor, y: Tensor, size: int = 32) -> list[Pair]:
    return list(zip(x.split(size), y.split(size), strict=True))


def numbers(scale: float = 1.0, shift: float = 0.0) -> list[Pair]:
    x = inputs()
    return split(x, shift + scale * (x[:, :1] - x[:, 1:2] + torch.tanh(2 * x[:, 2:3])))


def classes(scale: float = 1.0, shift: float = 0.0) -> list[Pair]:
    x = inputs()
    return split(shift + scale * x, (x[:, :3]).argmax(1))


def one_hot() -> list[Pair]:
    return [(x, F.one_hot(y, 3).float()) for x, y in classes()]


def yes_or_no() -> list[Pair]:
    x = inputs()
    return split(x, (x[:, :1] + x[:, 1:2] > 0).float())


def net(*outside: nn.Module, outputs: int = 1, activation: Callable[[], nn.Module] = nn.ReLU) -> Callable[[int], Any]:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 32), activation(), nn.Linear(32, outputs), *outside)

    return build


def mse(model: nn.Module, batch: Pair) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def mse_by_hand(model: nn.Module, batch: Pair) -> Tensor:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def bce(model: nn.Module, batch: Pair) -> Tensor:
    p = model(batch[0]).clamp(1e-7, 1 - 1e-7)
    return -(batch[1] * p.log() + (1 - batch[1]) * (1 - p).log()).mean()


@dataclass(frozen=True)
class Case:
    name: str
    category: str
    build: Callable[[int], nn.Module]
    batches: list[Any]
    loss_fn: Any = None
    optimizer: Any = "adam"
    lr: float | None = 0.01
    steps: int = 240

    def __str__(self) -> str:
        return self.name


def whole(batches: list[Pair]) -> Pair:
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


def mse_of_means(model: nn.Module, batch: Pair) -> Tensor:
    return (model(batch[0]).mean() - batch[1].mean()).square()


def with_last_of_one() -> list[Pair]:
    return [*classes()[:7], (torch.ones(1, 6), torch.zeros(1, dtype=torch.int64))]


def normed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def with_nan() -> list[Pair]:
    taken = [(x.clone(), y) for x, y in classes()]
    taken[5][0][7, 2] = math.nan
    return taken


def never_initialized(seed: int) -> nn.Module:
    model = net(outputs=3)(seed)
    with torch.no_grad():
        model[2].weight[1, 4] = 1e30
    return model


def of_body(change: Callable[[Any], Any]) -> Callable[[int], nn.Module]:
    """A net of three classes, changed."""

    def build(seed: int) -> nn.Module:
        model = net(outputs=3)(seed)
        with torch.no_grad():
            change(model)
        return model

    return build


def equal(model: Any) -> None:
    for p in model.parameters():
        p.fill_(0.1)


def shuffled() -> list[Pair]:
    x, y = inputs(), torch.randint(3, (256,), generator=torch.Generator().manual_seed(9))
    return split(x, y, 8)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.body(x), 0.95)


def far_out(seed: int) -> nn.Module:
    model = net(outputs=3)(seed)
    with torch.no_grad():
        model[0].weight *= 3000
        model[2].weight *= 300
    return model


class InAList(nn.Module):
    """Hidden layers that torch does not know."""

    def __init__(self, kind: Callable[[Any], Any] = list) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 3), nn.Linear(3, 3)
        self.hidden = kind([nn.Linear(3, 3) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.last(x)


def in_a_list(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return InAList()


FAULTY = [
    Case("softmax behind which the loss has its own", "activation", net(nn.Softmax(1), outputs=3), classes()),
    Case("softmax over one unit", "activation", net(nn.Softmax(1)), yes_or_no(), bce),
    Case("sigmoid in front of numbers beyond 1", "activation", net(nn.Sigmoid()), numbers(10.0), mse),
    Case("ReLU in front of numbers below 0", "activation", net(nn.ReLU()), numbers(shift=-2.0), mse),
    Case("functional softmax", "activation", lambda seed: Wrapped(net(outputs=3)(seed)), classes()),
    Case("targets of 2e5", "preprocessing", net(), numbers(4e4, 2e5), mse, "sgd"),
    Case("inputs of 1e6", "preprocessing", net(outputs=3), classes(3e5, 1e6)),
    Case("a rate that diverges", "learning_rate", net(), numbers(), mse, "sgd", 30.0),
    Case("a rate that hardly moves", "learning_rate", net(), numbers(), mse, "sgd", 1e-6),
    Case("a tenth of an epoch", "epochs", net(outputs=3), classes(), None, "adam", 3e-3, 4),
    Case("(N, 1) against (N,)", "loss", net(), [(x, y[:, 0]) for x, y in numbers()], mse_by_hand),
    Case(
        "(N, 1) against (N, 1) squeezed", "loss", net(), numbers(), lambda m, b: (m(b[0]) - b[1][:, 0]).square().mean()
    ),
    Case("a last batch of one", "batch_size", normed, with_last_of_one()),
    Case("NaN in one example", "numerics", net(outputs=3), with_nan()),
    Case("memory for a weight", "initialization", never_initialized, classes()),
    Case("the wrong sign", "loss", net(), numbers(), lambda m, b: -mse(m, b)),
    Case("the loss of the mean output", "loss", net(), numbers(), lambda m, b: mse_of_means(m, b)),
    Case(
        "the number of a class", "loss", net(outputs=3), classes(), lambda m, b: (m(b[0])[:, 0] - b[1]).square().mean()
    ),
    Case("a sum over the batch", "loss", net(), numbers(), lambda m, b: len(b[0]) * mse(m, b), "momentum", 0.05),
    Case("momentum 0.999", "optimizer", net(), numbers(), mse, "sgd,momentum=0.999", 0.05),
    Case("eps of 1", "optimizer", net(outputs=3), classes(), None, "adam,eps=10"),
    Case("uphill", "optimizer", net(), numbers(), mse, "adam,maximize=True"),
    Case(
        "a part of the parameters", "optimizer", net(), numbers(), mse, lambda p, lr: torch.optim.Adam(list(p)[-1:], lr)
    ),
    Case("batches of one", "batch_size", net(), split(*whole(numbers()), 1), mse, "momentum", 0.03),
    Case("inputs cast to 0", "preprocessing", net(outputs=3), classes(0.0)),
    Case("units that start equal", "initialization", of_body(equal), classes(), None, "sgd", 0.1),
    Case(
        "frozen but for the last",
        "architecture",
        of_body(lambda m: m[0].requires_grad_(False)),
        classes(),
        None,
        "sgd",
        0.05,
    ),
    Case("layers in a plain list", "architecture", in_a_list, classes(), None, "adam", 0.01, 200),
    Case("dropout by a function", "regularization", lambda seed: Dropping(), classes()),
    Case("weights a thousand times too large", "initialization", far_out, classes(), None, "sgd", 0.1),
]

SOUND = [
    Case("classes", "", net(outputs=3), classes()),
    Case("classes, found rate", "", net(outputs=3), classes(), lr=None, steps=40),
    Case("probabilities and their logarithm", "", net(nn.Softmax(1), outputs=3), one_hot(), lambda m, b: cce(m, b)),
    Case("log_softmax in front of cross-entropy", "", net(nn.LogSoftmax(1), outputs=3), classes()),
    Case("yes or no", "", net(nn.Sigmoid()), yes_or_no(), bce),
    Case("numbers", "", net(), numbers(), mse),
    Case("shares behind a sigmoid", "", net(nn.Sigmoid()), [(x, y.sigmoid()) for x, y in numbers()], mse),
    Case("numbers, SGD", "", net(), numbers(), mse, "sgd", 0.1),
    Case("batch norm", "", normed, classes()),
    Case("tanh", "", net(outputs=3, activation=nn.Tanh), classes()),
]


class Wrapped(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).softmax(-1)


def cce(model: nn.Module, batch: Pair) -> Tensor:
    return -(batch[1] * model(batch[0]).clamp(1e-7, 1).log()).sum(1).mean()


def diagnosed(case: Case) -> list[Finding]:
    tree = ns.diagnose(
        case.build, case.batches, optimizer=case.optimizer, loss_fn=case.loss_fn, lr=case.lr, steps=case.steps
    )
    return [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]


@pytest.mark.parametrize("case", FAULTY, ids=str)
def test_the_fault_is_named_first(case: Case) -> None:
    assert diagnosed(case)[0].category == case.category


@pytest.mark.parametrize("case", SOUND, ids=str)
def test_a_sound_program_is_left_alone(case: Case) -> None:
    assert diagnosed(case) == []


def by_name(name: str) -> Case:
    return next(case for case in FAULTY + SOUND if case.name == name)


def test_layers_in_plain_containers_are_found_and_those_of_torchs_own_are_not() -> None:
    assert list(unregistered(InAList())) == list(unregistered(InAList(tuple))) == ["hidden"]
    assert not unregistered(InAList(nn.ModuleList))
    model = net()(0)
    model.copies, model.shared = {"a": [nn.Parameter(torch.ones(2))]}, [model[0]]
    assert list(unregistered(model)) == ["copies"]
    known = registered(model)
    assert sum(p.numel() for p in known.parameters()) == sum(p.numel() for p in model.parameters()) + 2
    nn.Module.requires_grad_(torch.nn.ParameterList(model.copies["a"]), False)
    assert not unregistered(model), "a teacher that is not trained"


def test_an_example_that_gives_nan_is_found_by_its_place() -> None:
    case = by_name("NaN in one example")
    (found,) = diagnosed(case)
    assert found.place == "batch 5 of 8 (from 0), example 7"
    assert found.numbers["batch"] == 5 and found.numbers["example"] == 7


def root_of_zero(model: nn.Module, batch: Pair) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + (0 * model(batch[0])).square().sum(1).sqrt().mean()


def test_what_is_learned_by_heart_is_told_from_what_holds() -> None:
    of = {
        name: Program(net(outputs=3), batches, optimizer_factory("adam"), 0.02, 150)
        for name, batches in (("random", shuffled()), ("true", split(*whole(classes()), 8)))
    }
    found = by_heart(of["random"], 0.9)
    assert found is not None and found.category == "labels" and "8 batches" in found.sentence
    assert by_heart(of["true"], 0.9) is None


def test_data_in_order_of_the_target_vary_little_within_a_batch() -> None:
    for kind, batches in (("labels", classes()), ("number", numbers())):
        x, y = whole(batches)
        order = y.flatten().argsort(stable=True)
        assert share_within([t for _, t in batches], kind) > 0.8
        assert share_within([t for _, t in split(x[order], y[order])], kind) < 0.3


def test_a_gradient_that_is_not_finite_is_traced_to_its_operation() -> None:
    seen = first_pass(net(outputs=3)(0), classes(), root_of_zero).not_finite
    assert seen is not None and math.isfinite(seen.loss) and seen.operation == "sqrt" and seen.others == 7
    assert set(seen.parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert seen.example == -1, "every example gives it"


def test_a_module_that_makes_inf_is_told_from_those_that_pass_it_on() -> None:
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(F.relu(x) * 0)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), Log(), nn.Linear(4, 3))
    seen = first_pass(model, classes()).not_finite
    assert seen is not None and (seen.module, seen.kind) == ("1", "Log")


def test_what_is_mended_learns_and_the_code_says_how() -> None:
    first = diagnosed(by_name("targets of 2e5"))[0]
    assert first.numbers["score_mended"] > 0.8 > first.numbers["score"]
    assert "std" in first.code and first.code.count("\n") >= 1
    assert "in place of 0 %" in first.sentence


def test_the_rate_is_given_as_code() -> None:
    (first, *_) = diagnosed(by_name("a rate that hardly moves"))
    assert first.code.startswith("lr = ") and "was 1e-06" in first.code


@pytest.mark.parametrize(
    "name", ["relu", "sigmoid", "tanh", "softmax", "log_softmax", "elu", "gelu", "softplus", "exp", "identity"]
)
def test_an_activation_is_told_by_its_numbers(name: str) -> None:
    from normscope.diagnosis.outputs import ACTIVATIONS

    z = inputs(40, 5)
    assert identify(z, ACTIVATIONS[name](z)) == name


def test_layers_and_what_lies_between_them() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Linear(6, 8), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.4), nn.Linear(8, 3), nn.Tanh()
    )
    seen = chain(body, classes()[0])
    assert seen is not None
    assert seen.layers == ("0", "1", "4") and seen.between == ("identity", "relu", "tanh")


@pytest.mark.parametrize(
    ("loss_fn", "batches", "outputs", "family"),
    [
        (None, classes(), 3, "cross_entropy"),
        (cce, one_hot(), 3, "log_of_probabilities"),
        (bce, yes_or_no(), 1, "bce"),
        (mse, numbers(), 1, "mse"),
        (lambda m, b: 7 * mse(m, b), numbers(), 1, "mse"),
        (lambda m, b: (m(b[0]) - b[1]).abs().mean(), numbers(), 1, "mae"),
        (lambda m, b: F.binary_cross_entropy_with_logits(m(b[0]), b[1]), yes_or_no(), 1, "bce_logits"),
        (lambda m, b: F.nll_loss(m(b[0]), b[1]), classes(), 3, "nll"),
        (lambda m, b: (m(b[0]) - b[1]).pow(4).mean(), numbers(), 1, ""),
    ],
)
def test_a_loss_is_told_by_its_numbers(loss_fn: Any, batches: list[Any], outputs: int, family: str) -> None:
    model = net(outputs=outputs)(0)
    assert loss_family(model, batches[0], loss_fn, model(batches[0][0]).detach()) == family


def test_kinds_of_targets() -> None:
    assert target_kind([torch.tensor([0, 2, 1])], 3) == "labels"
    assert target_kind([torch.eye(3)], 3) == "one_hot"
    assert target_kind([torch.tensor([[1, 1, 0], [0, 0, 0]])], 3) == "multi_hot"
    assert target_kind([torch.tensor([[1.0], [0.0]])], 1) == "binary"
    assert target_kind([torch.tensor([[0.3], [0.0]])], 1) == "number"
    assert target_kind([], 1) == ""


def test_what_a_range_can_reach_is_known_on_paper() -> None:
    x, y = torch.zeros(4, 6), torch.tensor([[2.0], [2.0], [-2.0], [-2.0]])
    model = net(nn.Sigmoid())(0)
    could = reach(model, [(x, y)], mse, [model(x).detach()], "sigmoid")
    assert could is not None
    # The mean is 0, off by 2; within 0 to 1 the best outputs are 1 and 0, off by 1 and by 2.
    assert (could.constant, could.lowest, could.in_range) == pytest.approx((4.0, 0.0, 2.5))
    assert could.missed == pytest.approx(2.5 / 4)
    twice = reach(net(nn.Softmax(1), outputs=3)(0), classes(), None, [torch.zeros(32, 3)] * 8, "softmax")
    assert twice is not None and twice.in_range == pytest.approx(math.log(math.e + 2) - 1, abs=1e-3)


def test_outputs_that_are_no_probabilities_are_no_scale() -> None:
    def nll(model: nn.Module, batch: Pair) -> Tensor:
        return F.nll_loss((model(batch[0]) + 1e-9).log(), batch[1])

    program = Program(net(nn.Softmax(1), outputs=3), classes(), optimizer_factory("adam"), 0.01, 240, nll)
    assert facts_of(program).program.lowest_loss == pytest.approx(0, abs=1e-3)
    confined = with_levels(program, Reach(1.0, -3.0, 0.5))
    assert confined.lowest_loss == -3.0, "a range that keeps low losses out of reach is told as that"


def test_a_run_is_scored_between_the_best_constant_and_the_lowest_loss() -> None:
    sgd = lambda params, lr: torch.optim.SGD(params, lr)  # noqa: E731
    still = Program(net(), numbers(), sgd, 0.0, 16, mse, constant_loss=4.0, lowest_loss=1.0)
    seen = run(still)
    assert seen.score == pytest.approx((4.0 - seen.end_loss) / 3.0)
    diverging = run(Program(net(), numbers(), sgd, 100.0, 50, mse, constant_loss=4.0))
    assert diverging.diverged and diverging.score == -1 and diverging.end_loss == math.inf


def test_it_leaves_no_trace() -> None:
    case = by_name("softmax behind which the loss has its own")
    model = case.build(0)
    with no_trace(model, case.batches):
        ns.diagnose(model, case.batches, optimizer="sgd", lr=0.01, steps=20)
        ns.diagnose(model, case.batches, optimizer="sgd", steps=10)


def test_one_batch_of_all_data_is_served() -> None:
    x, y = (torch.cat(parts) for parts in zip(*numbers(), strict=True))
    tree = ns.diagnose(net(), [(x, y)], optimizer="adam", loss_fn=mse, lr=0.01, steps=100)
    assert not [f for f in as_findings(tree["findings"].to_dataset()) if f.fault]


def test_no_batch_that_can_be_measured_is_one_line() -> None:
    with pytest.raises(InvalidBatch, match="does not take this batch"):
        ns.diagnose(nn.Linear(5, 3), classes(), optimizer="sgd")


def pinn(model: nn.Module, points: Tensor) -> Tensor:
    x = points.clone().requires_grad_()
    u = model(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return (du - u).square().mean() + (model(torch.zeros(1, 6)) - 1).square().mean()


def test_a_loss_that_differentiates_inside_itself_is_served() -> None:
    points = list(inputs().split(32))
    tree = ns.diagnose(net(activation=nn.Tanh), points, optimizer="adam", loss_fn=pinn, lr=1e-2, steps=40)
    assert bool((tree["batches"]["gradient_norm"] > 0).all())
    assert float(tree["training/as_it_is"]["score"]) > 0.3


def test_a_loss_that_calls_a_part_of_the_model_is_served() -> None:
    def of_logits(model: Any, batch: Pair) -> Tensor:
        return F.cross_entropy(model[:-1](batch[0]), batch[1])

    tree = ns.diagnose(net(nn.Softmax(1), outputs=3), classes(), optimizer="adam", loss_fn=of_logits, lr=0.01, steps=60)
    assert not [f for f in as_findings(tree["findings"].to_dataset()) if f.fault]
    assert "evidence" in tree and math.isnan(float(tree["evidence"]["commonest_share"]))


def test_every_fault_has_a_category_and_a_place_in_the_order() -> None:
    found = faults()
    assert len(found) >= 25 and {fault.category for fault in found} <= set(CATEGORIES)
    assert [fault.order for fault in found] == sorted(fault.order for fault in found)
    for fault in found:
        assert fault.rule is not None or fault.suspected is not None


def tree_of(*found: Finding, score: float = 0.9, diverged: bool = False) -> xr.DataTree:
    training = xr.Dataset({"loss": ("step", [2.0, 1.0]), "constant_loss": 2.3, "score": score, "diverged": diverged})
    return xr.DataTree.from_dict({"findings": findings_dataset(found), "training/as_it_is": training})


FOUND = Finding("a", "b c", "d.", "e.", True, {"x": 1.5, "y": math.inf}, "loss", "layer", "one\ntwo")


def test_text_and_json_of_findings() -> None:
    text = findings_text(tree_of(FOUND, Finding("g", "h", "i", "j", True, {}, "epochs")))
    assert text.splitlines() == ["B c (loss).", "  d.", "  To do: e.", "    one", "    two", "Also: h (epochs)."]
    assert ns.answer(tree_of(FOUND)).startswith("B c (loss).")
    content = json.loads(findings_json(tree_of(FOUND)))
    assert content["schema"] == "normscope.findings" and content["version"] == 1
    assert content["findings"] == [
        {
            "name": "a",
            "category": "loss",
            "title": "b c",
            "sentence": "d.",
            "advice": "e.",
            "code": "one\ntwo",
            "place": "layer",
            "fault": True,
            "numbers": {"x": 1.5, "y": None},
        }
    ]
    told = {"steps": 2, "end_loss": 1.0, "constant_loss": 2.3, "score": 0.9, "diverged": False}
    assert content["training"]["as it is"] == told


@given(st.floats(-1, 1) | st.just(math.nan), st.booleans())
@settings(max_examples=40, deadline=None)
def test_nothing_is_called_found_and_sound_of_what_does_not_learn(score: float, diverged: bool) -> None:
    score = -1.0 if diverged else score
    text = findings_text(tree_of(Finding("curvature", "t", "s.", "", False), score=score, diverged=diverged))
    failed = diverged or not score >= 0.2
    assert text.startswith("No fault was found, but") is failed
    assert ("it diverges at step 2" in text) is diverged
    assert ("it was not trained" in text) is math.isnan(score)
    assert ("it hardly learns" in text) is (0.05 <= score < 0.2)
    assert ("of what there is to learn" in " ".join(text.split())) is (0.05 <= score < 0.8)


def test_what_was_cut_short_gets_no_advice_on_the_data() -> None:
    tree = tree_of(score=0.0)
    tree["findings"].attrs["skipped"] = "There was no time for every repair: what is not said was not looked at."
    text = findings_text(tree)
    assert "in the time there was, after 2 steps of training: give it more" in " ".join(text.split())
    assert "look at the data" not in text


def test_a_rate_of_which_a_hundredth_mends_all_is_told_before_data_out_of_scale() -> None:
    case = Case("", "learning_rate", net(), numbers(30.0, 60.0), mse, "sgd", 0.05, 600)
    assert diagnosed(case)[0].category == "learning_rate"
    assert diagnosed(replace(case, lr=5e-4)) == []


def test_a_rate_is_not_blamed_of_a_program_that_learns_half_as_much_without() -> None:
    step = Step(next(f for f in faults() if f.name == "learning_rate"), Suspicion("", "", {}))
    repair = Repair(Program(net(), numbers(), optimizer_factory("sgd"), 0.1, 10), "", "")
    assert is_needed(Needed(step, repair, 0.45), 0.92) and not is_needed(Needed(step, repair, 0.49), 0.92)


def test_the_evidence_says_in_which_direction_rates_are_tried_first() -> None:
    program = Program(net(), numbers(), optimizer_factory("sgd"), 0.1, 10)
    fault = next(f for f in faults() if f.name == "learning_rate")
    for settled, first in ((0.01, 0.01), (1.0, 1.0), (math.nan, 0.01)):
        evidence = xr.Dataset({"lowest_lr": settled, "amplification": 1.0})
        assert fault.repairs is not None
        assert next(fault.repairs(program, Facts(program, evidence=evidence))).program.lr == pytest.approx(first)


def test_can_be_asserted_in_a_test_of_ones_own() -> None:
    assert_can_learn(net(outputs=3), classes())
    with pytest.raises(AssertionError, match="already is a distribution"):
        assert_can_learn(net(nn.Softmax(1), outputs=3), classes())


FILE = """
import torch
from torch import nn

g = torch.Generator().manual_seed(0)
x = torch.randn(256, 6, generator=g)
loader = list(zip(x.split(32), x[:, :3].argmax(1).split(32)))
def net(seed): return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
def twice(seed): return nn.Sequential(net(seed), nn.Softmax(1))
"""


def test_the_command_line(run_normscope: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    options = ["--data", "mine.py:loader", "--device", "cpu", "--optimizer", "adam"]
    code, out, _ = run_normscope("diagnose", "mine.py:net", *options, "--fail-on", "fault")
    assert code == 0 and out.startswith("No fault was found.\n")
    code, out, _ = run_normscope("diagnose", "mine.py:twice", *options, "--fail-on", "fault")
    assert code == 1 and out.startswith("The output already is a distribution") and "To do: " in out
    code, out, _ = run_normscope("diagnose", "mine.py:twice", *options, "--json", "--lr", "0.01", "--steps", "60")
    assert code == 0 and json.loads(out)["findings"][0]["category"] == "activation"
    code, _, errors = run_normscope("diagnose", "mine.py:net", *options, "--fail-on", "faults")
    assert code == 2 and "did you mean 'fault'" in errors
