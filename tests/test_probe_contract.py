"""One contract for all probes, tested on all of the zoo: no trace, labelled as declared, errors of one line."""

import importlib
import inspect
import math
import re
import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import nn
from zoo import ZOO, by_name, disturb, no_trace, scaled

import normscope as ns
import normscope.probes
import normscope.rates.labels
import normscope.training.result
from normscope.errors import InvalidBatch, InvalidConfig, NormscopeError
from normscope.figures.style import COLORS
from normscope.results.schema import OF_LOSS

FOLDER = Path(normscope.probes.__file__).parent
MODULES = {
    file.stem: importlib.import_module(f"normscope.probes.{file.stem}")
    for file in sorted(FOLDER.glob("*.py"))
    if file.stem != "__init__"
}
PROBES = {name: getattr(ns, name) for name in MODULES}

OPTIONS = {
    "gradient_histogram": {"num_bins": 7},
    "moments_along_step": {"step_size": 0.5, "fractions": [0, 1]},
    "relative_loss": {"step_sizes": [1e-3, 0.1]},
    "sharpness": {"max_products": 4},
}
"""Given to every call, so that it is quick."""

REFUSED = {("input_jacobian", "embedding_tied"): "tensors of floating point"}
"""What a probe cannot ask of a model, and the words that say so."""

PAIRS = [(probe, entry) for probe in PROBES for entry in ZOO if (probe, entry.name) not in REFUSED]
each_pair = pytest.mark.parametrize(("name", "entry"), PAIRS, ids=lambda value: str(value))


def measure(name, model, batch, loss_fn=None):
    return PROBES[name](model, batch, loss_fn=loss_fn, **OPTIONS.get(name, {}))


def run(name, model, batch, loss_fn=None):
    torch.manual_seed(7)  # of dropout
    return measure(name, model, batch, loss_fn)


def test_every_file_in_the_folder_is_a_public_probe_of_its_own_name():
    assert len(PROBES) >= 10
    for name, probe in PROBES.items():
        assert probe is getattr(MODULES[name], name) and name in ns.__all__


@pytest.mark.parametrize("name", PROBES)
def test_probes_are_called_alike(name):
    parameters = inspect.signature(PROBES[name]).parameters
    assert list(parameters)[:2] == ["model", "batch"]
    named = [p for p in list(parameters.values())[2:] if p.kind is p.KEYWORD_ONLY]
    assert len(named) == len(parameters) - 2, "all else is given by name"
    assert parameters["loss_fn"].default is None
    if "layers" in parameters:
        assert parameters["layers"].default is None


@each_pair
def test_leaves_no_trace_and_the_state_that_the_model_came_in_does_not_matter(name, entry):
    fresh = run(name, entry.build(0), entry.batch(0), entry.loss_fn)
    model, batch = disturb(entry.build(0)), entry.batch(0)
    torch.manual_seed(7)
    with no_trace(model, batch):
        measure(name, model, batch, entry.loss_fn)
    assert run(name, model, batch, entry.loss_fn).identical(fresh)


@each_pair
def test_the_dataset_is_what_the_probe_declares(name, entry):
    dataset = run(name, entry.build(0), entry.batch(0), entry.loss_fn)
    declared = {v.name: v for v in MODULES[name].VARIABLES}
    assert {v.name for v in declared.values() if not v.optional} == set(map(str, dataset.variables))
    cross_entropy = entry.loss_fn is None and not isinstance(entry.batch(0), dict)
    for key, array in dataset.variables.items():
        one = declared[str(key)]
        units = ("nat" if cross_entropy else "1") if one.units == OF_LOSS else one.units
        assert array.dims == one.dims
        assert array.attrs == {"long_name": one.long_name, "units": units}
        assert (key in dataset.coords) == one.is_coord
    assert set(dataset.dims) <= set(dataset.coords)
    assert {"normscope", "torch", "device", "dtype", "threads"} <= set(dataset.attrs)
    if "depth" in declared:
        places = dataset["depth"].values
        assert places[~torch.isnan(torch.as_tensor(places)).numpy()].tolist() == sorted(p for p in places if p == p)


@pytest.mark.parametrize(
    ("instrument", "variables"),
    [
        *(pytest.param(PROBES[name], MODULES[name].VARIABLES, id=name) for name in PROBES),
        pytest.param(ns.stable_lr, normscope.rates.labels.VARIABLES, id="stable_lr"),
        pytest.param(ns.train, normscope.training.result.VARIABLES, id="train"),
    ],
)
def test_the_docstring_says_what_comes_back(instrument, variables):
    returns = inspect.getdoc(instrument).partition("Returns:")[2].partition("Raises:")[0]
    said = set(re.findall(r"`([a-z_]+)[`(]", returns))
    places = {"layer", "channel", "example", "label", "index", "rank", "bin", "edge", "end", "first_lr"}
    assert {v.name for v in variables} - places - said == set()
    for v in variables:
        for over in re.findall(rf"`{v.name}\(([a-z_, ]+)\)`", returns):
            assert tuple(over.split(", ")) == v.dims, v.name


def test_the_tables_in_the_docs_are_those_of_the_declared_variables():
    """`python docs/variables.py` writes them."""
    docs = Path(__file__).parents[1] / "docs"
    script = runpy.run_path(str(docs / "variables.py"))
    page = (docs / "variables.md").read_text(encoding="utf-8")
    declared = [*PROBES, "rates.labels", "training.result", "diagnosis.evidence"]
    assert all(f"<!-- variables: {name} -->" in page for name in declared)
    assert script["with_tables"](page) == page, "run python docs/variables.py"


@pytest.mark.parametrize("name", PROBES)
def test_it_survives_the_disk(name, tmp_path):
    dataset = run(name, by_name("mlp").build(0), by_name("mlp").batch(0))
    assert ns.load(ns.save(dataset, tmp_path / "probe.nc")).identical(dataset)


@pytest.mark.parametrize("name", PROBES)
def test_nan_in_a_batch_is_a_result(name):
    entry = by_name("mlp")
    model, batch = disturb(entry.build(0)), scaled(entry.batch(0), math.nan)
    with no_trace(model, batch):
        dataset = measure(name, model, batch)
    numbers = [v for v in dataset.data_vars.values() if v.dtype.kind == "f"]
    assert any(bool(v.isnull().any()) for v in numbers)
    assert isinstance(dataset, xr.Dataset)


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(
    "batch",
    [None, "text", (), (by_name("mlp").batch(0)[0][:0], by_name("mlp").batch(0)[1][:0])],
    ids=["none", "text", "no parts", "no examples"],
)
def test_a_batch_that_is_none_is_refused_in_one_line(name, batch):
    model = disturb(by_name("mlp").build(0))
    with no_trace(model), pytest.raises(InvalidBatch) as caught:
        measure(name, model, batch)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("name", [name for name in PROBES if name != "input_jacobian"])  # which needs no parameter
def test_a_model_without_a_trainable_parameter_is_refused_in_one_line(name):
    model = disturb(by_name("mlp").build(0).requires_grad_(False))
    with no_trace(model), pytest.raises(NormscopeError, match="no trainable parameter") as caught:
        measure(name, model, by_name("mlp").batch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "entry"), REFUSED, ids=str)
def test_what_cannot_be_asked_of_a_model_is_refused_in_one_line(name, entry):
    entry = by_name(entry)
    model = disturb(entry.build(0))
    with no_trace(model), pytest.raises(InvalidBatch, match=REFUSED[name, entry.name]):
        measure(name, model, entry.batch(0), entry.loss_fn)


@pytest.mark.parametrize("name", [name for name in PROBES if "layers" in inspect.signature(PROBES[name]).parameters])
def test_layers_that_are_not_there_are_named(name):
    options = OPTIONS.get(name, {}) | {"layers": "conv*"}
    with pytest.raises(NormscopeError, match="no layer matches 'conv\\*'; this model has 0, 2, 4"):
        PROBES[name](by_name("mlp").build(0), by_name("mlp").batch(0), **options)


class RebindsBuffer(nn.Module):
    """Its buffer is a new tensor after every pass, as a running mean that is written `self.m = ...` makes it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(7, 4)
        self.register_buffer("running", torch.zeros(4))

    def forward(self, x):
        y = self.fc(x)
        self.running = 0.9 * self.running + 0.1 * y.detach().mean(0)
        return y - self.running


@pytest.mark.parametrize("name", PROBES)
def test_a_model_that_rebinds_a_buffer_is_measured_and_left_as_it_is(name):
    torch.manual_seed(0)
    model, batch = RebindsBuffer(), by_name("mlp").batch(0)
    torch.manual_seed(7)
    with no_trace(model, batch):
        first = measure(name, model, batch)
    assert run(name, model, batch).identical(first)


MAPS = {"moments_along_step": {"layer": "4"}, "output_gradients": {}}
"""Pictures of one network each, in colour."""

DRAWN = [name for name in PROBES if hasattr(ns, f"plot_{name}")]
ALONG = {"norm": ["none", "batch"], "seed": [0, 1, 2], "checkpoint": [1, 5], "step": [0, 100]}


def in_dims(dataset, *dims):
    for dim in dims:
        dataset = xr.concat([dataset] * len(ALONG[dim]), pd.Index(ALONG[dim], name=dim), coords="minimal")
    return dataset


def draw(name, dataset, **options):
    return getattr(ns, f"plot_{name}")(dataset, ax=Figure().subplots(), **options)


@pytest.mark.parametrize("name", [name for name in DRAWN if name not in MAPS])
@pytest.mark.parametrize("dims", [(), ("norm",), ("norm", "checkpoint"), tuple(ALONG)], ids=str)
def test_a_figure_draws_networks_seeds_and_times(name, dims):
    options = {"layer": "0"} if name == "gradient_histogram" else {}
    dataset = in_dims(run(name, by_name("mlp").build(0), by_name("mlp").batch(0)), *dims)
    before = dataset.copy(deep=True)
    ax = draw(name, dataset, **options)
    assert dataset.identical(before)
    said = " ".join(text.get_text() for text in ax.get_legend().get_texts())
    colors = {to_hex(line.get_color()) for line in ax.lines}
    if "norm" in dims:
        assert "with batch norm" in said and "without" in said
        assert "checkpoint" in dims or {COLORS["batch"], COLORS["none"]} <= colors
    for dim in {"checkpoint", "step"} & set(dims):
        assert all(f"{dim} {value}" in said for value in ALONG[dim])
    ax.figure.draw_without_rendering()


@pytest.mark.parametrize("name", MAPS)
def test_a_map_of_several_networks_is_refused_in_one_line(name):
    dataset = run(name, by_name("mlp").build(0), by_name("mlp").batch(0))
    draw(name, dataset, **MAPS[name]).figure.draw_without_rendering()
    for dim in ALONG:
        with pytest.raises(InvalidConfig, match=f"one picture shows one network: choose along {dim}"):
            draw(name, in_dims(dataset, dim), **MAPS[name])
