"""diagnose: what the loss counts, what it makes of a model, and what a model forgets; mended twins are left alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from broken_programs import (
    CHOSEN,
    REPORTED,
    TOKENS,
    Graph,
    Program,
    Reader,
    classes,
    encoder,
    one_graph,
    padded_sentences,
)
from torch import Tensor, nn

import normscope as ns
from normscope.diagnosis.faults.collapse import sees_two_views
from normscope.diagnosis.faults.forgetting import steps_dim
from normscope.diagnosis.faults.same_batch import same
from normscope.diagnosis.faults.second_derivative import derivatives
from normscope.diagnosis.finding import Finding, as_findings
from normscope.diagnosis.mixing import mixing
from normscope.diagnosis.outputs import loss_family
from normscope.diagnosis.padding import padding_of
from normscope.diagnosis.words import score_of

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


PROGRAMS = [pytest.param(p, id=f"{p}, {name}") for name, some in (("A", CHOSEN), ("B", REPORTED)) for p in some]


def diagnosed(program: Program, which: str) -> xr.DataTree:
    loss_fn = getattr(program, which)[1]
    return ns.diagnose(
        program.build(which), program.batches, optimizer="adam", loss_fn=loss_fn, lr=program.lr, steps=program.steps
    )


def faults(tree: xr.DataTree) -> list[Finding]:
    return [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_fault_is_named_first_and_its_mended_twin_is_left_alone(program: Program) -> None:
    assert faults(diagnosed(program, "broken"))[0].name == program.expected
    assert not faults(diagnosed(program, "mended"))


# --- Padding ---


class WithLoss(nn.Module):
    """Gives its loss itself, as models of transformers do: labels are moved by one position in it."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = Reader(12, 12, True)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.reader(input_ids)
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


@pytest.mark.parametrize(("ignored", "counted"), [(0, True), (-100, False)])
def test_padding_of_a_mapping_is_seen_behind_labels_that_the_model_moves(ignored: int, counted: bool) -> None:
    batches = [{"input_ids": x, "labels": torch.where(x == 0, ignored, x)} for x, _ in padded_sentences()[:3]]
    found = padding_of(WithLoss(), batches)
    assert found is not None and found.counted is counted and found.target == ignored
    zeros = torch.cat([x == 0 for x, _ in padded_sentences()[:3]])
    assert found.share == pytest.approx(float(zeros.double().mean()))


def test_sequences_that_end_alike_by_chance_are_no_padding() -> None:
    x = torch.randint(0, 3, (64, 12), generator=torch.Generator().manual_seed(0))
    assert (
        padding_of(
            Reader(3, 3, True), [(x, x)] * 2, lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten())
        )
        is None
    )


def test_a_loss_that_leaves_a_label_out_is_known() -> None:
    x, y = padded_sentences()[0]
    model = Reader(12, 12, True)
    like = model(x).detach()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=0)

    assert loss_family(model, (x, y), loss, like) == ""
    assert loss_family(model, (x, y), loss, like, 0) == "cross_entropy"


def test_labels_of_which_some_are_left_out_are_served() -> None:
    batches = [(x, torch.where(y == 0, -100, y)) for x, y in padded_sentences()[:6]]
    tree = ns.diagnose(Reader(TOKENS, TOKENS, True), batches, optimizer="adam", lr=3e-3, steps=40, seconds=2)
    assert not faults(tree)


# --- The others ---


def test_a_target_beside_two_views_makes_them_pairs_to_be_told() -> None:
    model, x, y = nn.Linear(4, 4), inputs(8, 4), torch.arange(8) % 2

    def contrast(model: nn.Module, batch: Any) -> Tensor:
        near = (model(batch[0]) - model(batch[1])).square().mean(1)
        return (near * batch[2] - near * (1 - batch[2])).mean() if len(batch) > 2 else near.mean()

    assert sees_two_views(model, (x, x + x.square() / 4), contrast)
    assert not sees_two_views(model, (x, x + x.square() / 4, y), contrast)
    assert not sees_two_views(model, (x, y), lambda m, b: F.cross_entropy(m(b[0]), b[1]))


def test_real_and_made_examples_are_no_views() -> None:
    real, made = inputs(16, 64), inputs(2, 16, 64)[1]

    def critic(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[1]).mean() - model(batch[0]).mean()

    assert sees_two_views(encoder(False)(), (real, real + 0.3 * made), critic)
    assert not sees_two_views(encoder(False)(), (real, made), critic)


def test_two_views_in_one_call_are_no_examples_that_are_mixed() -> None:
    x = inputs(16, 64)
    both = [(x, x + 0.1), (x.flip(0), x.flip(0) - 0.1)]
    assert mixing(encoder(False)(), both, lambda m, b: m(torch.cat(b)).square().mean()) == (0.0, "")
    assert mixing(encoder(False)(), both, lambda m, b: m(torch.cat(b) + b[0].mean(0)).square().mean())[0] > 0.01


def test_the_order_of_derivatives_inside_a_loss_is_known() -> None:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return second.square().mean() + model(x).mean()

    for activation, zero in ((nn.Tanh(), False), (nn.ReLU(), True)):
        found = derivatives(nn.Sequential(nn.Linear(1, 8), activation, nn.Linear(8, 1)), torch.randn(4, 1), loss)
        assert [(one.order, one.zero) for one in found] == [(1, False), (2, zero)]


def test_batches_are_the_same_by_their_numbers_and_not_by_a_loss_that_sees_none() -> None:
    x = torch.ones(4, 2)
    assert same((x, x), (x.clone(), x)) and not same((x, x), (x, 2 * x))
    assert not same(0, 0)


def test_steps_run_along_the_dim_that_the_targets_lack() -> None:
    x, y = torch.randn(16, 10, 3), torch.zeros(16, dtype=torch.long)
    assert steps_dim((x, y)) == 1
    assert steps_dim((x.transpose(0, 1), y)) == 0
    assert steps_dim((x, torch.zeros(16, 10))) is None  # a target for every step
    assert steps_dim((x.flatten(1), y)) is None  # features in no order


def test_a_graph_whose_links_are_sparse_is_served() -> None:
    (((x, links), y),) = one_graph()
    batches = [((x, links.to_sparse()), y)]
    tree = ns.diagnose(lambda _seed: Graph(2), batches, optimizer="adam", loss_fn=classes, lr=0.01, steps=60, seconds=2)
    assert not faults(tree) and score_of(tree) > 0.8
