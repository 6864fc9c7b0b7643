"""What looks like a fault and does no harm is not called one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_check_first_look import batches, build, names
from torch import nn

import normscope as ns
from normscope.descent.optimizers import foreign_parameters, optimizer_factory
from normscope.diagnosis.facts import Facts, facts_of, weight_gains
from normscope.diagnosis.faults import no_nonlinearity
from normscope.diagnosis.outputs import Chain
from normscope.diagnosis.program import Program

pytestmark = pytest.mark.usefixtures("one_thread_throughout")


def test_an_optimizer_of_another_model_is_told_from_the_models_own() -> None:
    model, other = build(0), build(1)

    def foreign(params: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(other.parameters(), lr)

    assert names(ns.diagnose(model, batches(), optimizer=foreign, seconds=0.2))[0] == "foreign_optimizer"
    for optimizer, count in (
        (foreign, 6),
        ("adam", 0),
        (foreign(None, 0.3), 6),
        (torch.optim.SGD(model.parameters()), 0),
    ):
        assert foreign_parameters(optimizer_factory(optimizer), model, 0.1) == count
    made = Program(lambda _seed: model, batches(), optimizer_factory(foreign(None, 0.3)), 0.1, 4)
    assert facts_of(made, instance=True).foreign == 6
    assert facts_of(made).foreign == 0  # a build makes models that no optimizer can hold yet
    assert facts_of(replace(made, optimizer=optimizer_factory(foreign))).foreign == 6  # but this one is asked for each


@pytest.mark.parametrize(("bare", "hidden", "told"), [(1, 1, True), (1, 3, True), (1, 10, False), (9, 10, True)])
def test_one_projection_in_a_deep_network_lacks_no_activation(bare: int, hidden: int, told: bool) -> None:
    between = ["identity"] * bare + ["relu"] * (hidden - bare) + ["identity"]
    chain = Chain(tuple(map(str, range(hidden + 1))), tuple(between))
    suspicion = no_nonlinearity.FAULT.suspected
    assert suspicion is not None and (suspicion(Facts(None, chain)) is not None) is told  # type: ignore[arg-type]


class Gated(nn.Module):
    """A network that learns, with a narrow gate beside its path of which most units are dead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
        self.squeeze, self.excite = nn.Linear(64, 8), nn.Linear(8, 64)
        with torch.no_grad():
            self.squeeze.bias[:6] = -1e3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x.flatten(1)).relu()
        return self.head(h * self.excite(self.squeeze(h).relu()).sigmoid())


def test_a_dead_gate_beside_the_path_is_no_fault() -> None:
    tree = ns.diagnose(Gated(), batches(), optimizer="adam", seconds=1)
    evidence = tree["evidence"].to_dataset()
    assert float(evidence["silent_share"].sel(layer="squeeze")) == 0.75
    assert float(evidence["units"].sel(layer="squeeze")) == 8
    assert not {"dead", "dead_units"} & set(names(tree))


class WithToken(nn.Module):
    """A table of its own beside its layers, which starts tiny, as a class token does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.token = nn.Linear(8, 8), nn.Parameter(1e-6 * torch.ones(1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.token


def test_a_table_that_starts_tiny_is_no_weight_that_multiplies() -> None:
    assert [name for name, _ in weight_gains(WithToken())] == ["layer"]
    assert [name for name, _ in weight_gains(nn.Linear(8, 8))] == [""]
