"""The ladder's norms in two small transformers: what the networks are, and what is measured, drawn and judged."""

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.data import load_data
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import apart_transformers
from normscope.paper.exhibits.apart_transformers import EXHIBIT, NORMS, build, share
from normscope.paper.transformers import CONTEXT, characters, text, text_batch
from normscope.statistics.verdict import NOT_REPRODUCED, REPRODUCED


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(load_data("digits", train_size=100), seeds=(0,), batch_size=48)


def test_the_text_is_the_next_characters() -> None:
    numbers, count = characters()
    assert len(numbers) == len(text()) > 30_000 and int(numbers.max()) == count - 1
    inputs, following = text_batch(3, seed=0)
    assert inputs.shape == following.shape == (3, CONTEXT)
    assert torch.equal(inputs[:, 1:], following[:, :-1])
    assert not torch.equal(inputs, text_batch(3, seed=1)[0])


def test_the_gpt_sees_no_later_character_and_the_vit_every_patch(setting: Setting) -> None:
    gpt = build(setting, "char-GPT", "layer", 0)
    inputs, _ = text_batch(2, seed=0)
    changed = inputs.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 10
    before, after = gpt(inputs), gpt(changed)
    torch.testing.assert_close(before[:, :40], after[:, :40])
    assert not torch.allclose(before[:, 40:], after[:, 40:])
    vit = build(setting, "ViT", "layer", 0)
    images = setting.first_batch(0)[0][:2].clone()
    before = vit(images)
    images[:, :, -1, -1] += 1
    assert not torch.allclose(before, vit(images))


@pytest.mark.parametrize("network", apart_transformers.NETWORKS)
def test_weights_are_the_seeds_whatever_the_norm_and_norms_differ(setting: Setting, network: str) -> None:
    nets = {norm: build(setting, network, norm, 0) for norm in NORMS}
    inputs = setting.first_batch(0)[0] if network == "ViT" else text_batch(48, seed=0)[0]
    for norm, net in nets.items():
        assert torch.equal(net.get_parameter("head.weight"), nets["none"].get_parameter("head.weight")), norm
    outputs = {norm: net(inputs).detach() for norm, net in nets.items()}
    assert all(output.isfinite().all() for output in outputs.values())
    same_forward = {"batch", "batch_detached"}  # they differ backwards: see test_batch_norm_parts
    for a in NORMS:
        for b in NORMS:
            if a < b and {a, b} != same_forward and not {a, b} <= {"batch_first", "batch_running"}:
                assert not torch.allclose(outputs[a], outputs[b], rtol=1e-4, atol=1e-6), (a, b)


def test_it_is_measured_as_the_probes_do_drawn_and_judged(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart_transformers, "NORMS", ("none", "layer"))
    monkeypatch.setattr(apart_transformers, "EXAMPLES", 8)
    monkeypatch.setattr(apart_transformers, "FEW", 2)
    monkeypatch.setattr(apart_transformers, "MOST_PRODUCTS", 4)
    dataset = EXHIBIT.measure(setting)
    assert dict(dataset.sizes) == {"network": 2, "norm": 2, "seed": 1, "optimizer": 2, "block": 6}
    one = dataset.sel(network="char-GPT", norm="layer", seed=0)
    curve = ns.relative_loss(
        build(setting, "char-GPT", "layer", 0),
        text_batch(8, 0),
        step_sizes=np.geomspace(1e-2, 1e3, 80),
        optimizer="adam",
    )
    found = float(one["divergence_step_size"].sel(optimizer="adam"))
    assert found == pytest.approx(float(curve["divergence_step_size"]), rel=0.17)
    figure = EXHIBIT.draw(dataset)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["no norm", "layer norm"]


def test_a_prediction_can_come_out_either_way(setting: Setting) -> None:
    seeds, norms = 3, list(NORMS)
    random = np.random.default_rng(0)
    rate = np.exp(0.05 * random.normal(size=(2, len(norms), seeds)))
    rate[:, norms.index("none")] *= 0.01
    rate[:, norms.index("batch_mean")] *= 0.01
    coords = {"network": list(apart_transformers.NETWORKS), "norm": norms}
    edge = xr.DataArray(rate, dims=("network", "norm", "seed"), coords=coords)
    dataset = xr.Dataset({"edge_lr": edge})
    part, whole = share(dataset, "ViT", "edge", "layer")
    np.testing.assert_array_equal(part, whole)
    of_edge = [claim for claim in EXHIBIT.claims if "2/λ₁" in claim.statement]
    assert {claim.judged(dataset).verdict for claim in of_edge} == {REPRODUCED}
    turned = dataset.assign(edge_lr=edge.copy(data=np.where(edge > 0.1, edge, edge * 100)))
    turned["edge_lr"].loc[{"norm": "none"}] = edge.sel(norm="none")
    [mean] = [claim for claim in of_edge if "batch_mean" in claim.statement and "ViT" in claim.statement]
    assert mean.judged(turned).verdict == NOT_REPRODUCED
