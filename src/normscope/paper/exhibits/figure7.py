"""Figure 7: singular values of products of random matrices, and the same of networks of growing depth: of the Jacobian,
and of what the last layer reads of a mini-batch."""

from functools import partial
from itertools import product

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

from normscope.curvature.singular_values import effective_rank
from normscope.figures.singular_values import plot_effective_rank, plot_singular_values
from normscope.figures.style import figure_of
from normscope.paper.exhibit import NORM_TITLES, Exhibit, Setting
from normscope.paper.published import PUBLISHED
from normscope.paper.random_matrices import fuss_catalan_edge, product_singular_values
from normscope.probes.input_jacobian import input_jacobian
from normscope.results import Variable, labelled, with_attributes
from normscope.runtime.progress import progress
from normscope.statistics.claim import Bounded, Claim, RatioClaim, Scope
from normscope.statistics.verdict import CONTROL, LATER_WORKS

FACTORS = tuple(PUBLISHED["figure7"]["factors"])
SIZE = 1000
DRAWS = 10
"""The networks' seeds may be three; an edge is judged over ten products at least."""

FAMILIES = ("plain", "resnet")
NORMS = ("none", "batch")
DEPTHS = (8, 32, 110)
JACOBIAN = "network_effective_rank"
HIDDEN = "hidden_effective_rank"
"""Of d features / d image; and of the features, which the last layer reads, over the images. Older results lack it."""

BATCH_SIZE = 16
"""What batch norm normalizes over here; each of a Jacobian's 64 rows is a backward pass of them all."""


def measure(setting: Setting) -> xr.Dataset:
    """Draw the products; then take the Jacobians and the hidden features of networks of growing depth at the start."""
    networks = list(product(FAMILIES, NORMS, DEPTHS, setting.seeds))
    draws, spectra, hidden = [], [], []
    with progress("figure7", DRAWS + len(networks)) as bar:
        for draw in range(DRAWS):
            seed = setting.seeds[draw % len(setting.seeds)]
            draws.append(product_singular_values(FACTORS, SIZE, draws=1, seed=(seed, draw)))
            bar.advance(f"random matrices, draw {draw}")
        for family, norm, depth, seed in networks:
            net, images = network_of_features(setting, f"{family}{depth}", norm, seed)
            spectra.append(jacobian_of_features(net, images, norm).isel(example=0))
            hidden.append(rank_of_features(net, images))
            bar.advance(f"{family}{depth} {NORM_TITLES[norm]}, seed {seed}")
    drawn = [name for name in draws[0].data_vars if "draw" in draws[0][name].dims]
    products = xr.concat(draws, "draw", data_vars=drawn, combine_attrs="override")
    products = products.assign_coords(draw=("draw", np.arange(DRAWS), products["draw"].attrs))
    result = xr.merge([products, _ranks_of_networks(setting, spectra, hidden)], combine_attrs="drop_conflicts")
    return with_attributes(result, **setting.provenance(size=SIZE, networks_batch_size=BATCH_SIZE))


def _ranks_of_networks(setting: Setting, spectra: list[xr.Dataset], hidden: list[float]) -> xr.Dataset:
    """The networks' spectra and the ranks of their features over (family, norm, depth, seed); beside them, products of
    as many matrices."""
    features = spectra[0].sizes["index"]
    chains = product_singular_values(DEPTHS, features, draws=DRAWS, seed=setting.seeds)
    dims, shape = ("family", "norm", "depth", "seed"), (len(FAMILIES), len(NORMS), len(DEPTHS), -1)
    variables: dict[str, Variable] = {
        f"network_{name}": (
            dims,
            np.reshape([s[name].values for s in spectra], shape),
            f"{what} of the Jacobian",
            "1",
        )
        for name, what in {
            "effective_rank": "effective rank",
            "condition_number": "condition number",
            "condition_is_bound": "whether only a lower bound is known: condition number",
            "outside_share": "share in other examples' inputs",
        }.items()
    }
    values = np.reshape([s["singular_value"].values for s in spectra], (*shape, features))
    variables["network_singular_value"] = ((*dims, "feature"), values, "singular value of the Jacobian", "1")
    hidden_ranks = np.reshape(hidden, shape)
    variables[HIDDEN] = (dims, hidden_ranks, "effective rank of the features over images", "1")
    ranks = chains["effective_rank"].values
    variables["product_effective_rank"] = (
        ("depth", "draw"),
        ranks,
        "effective rank of a product of matrices",
        "1",
    )
    return labelled(
        variables,
        {
            "family": (list(FAMILIES), "kind of network", "1"),
            "norm": (list(NORMS), "normalization", "1"),
            "depth": (list(DEPTHS), "depth of the network", "1"),
            "seed": (list(setting.seeds), "seed", "1"),
            "draw": (np.arange(DRAWS), "draw", "1"),
            "feature": (np.arange(features), "place, the largest first", "1"),
        },
    )


def network_of_features(setting: Setting, name: str, norm: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """A network that ends in the pooled features, which the last layer reads, and the first images for it.

    Images are averaged down to 8 x 8 pixels, so that even 110 layers take seconds; the networks take any size.
    """
    net = setting.build(norm, seed, net=name)
    net.fc = nn.Identity()
    images, _ = next(setting.batches(seed, BATCH_SIZE))
    side = min(8, *images.shape[2:])
    images = nn.functional.adaptive_avg_pool2d(images, side).contiguous(memory_format=torch.channels_last)
    return net.train(), images


def jacobian_of_features(net: nn.Module, images: torch.Tensor, norm: str) -> xr.Dataset:
    """The Jacobian of the features by the first image. Without batch norm the other images do not matter and are left
    out."""
    return input_jacobian(net, images if norm == "batch" else images[:1], num_examples=1)


@torch.no_grad()
def rank_of_features(net: nn.Module, images: torch.Tensor) -> float:
    """The effective rank of the matrix (images, features): Tr(M)² / ‖M‖²_F for M = HᵀH, a lower bound of the rank
    (Daneshmand et al. 2020)."""
    return float(effective_rank(torch.linalg.svdvals(net(images).double()).numpy(force=True)))


def draw(dataset: xr.Dataset) -> Figure:
    """Above, the paper's three histograms with theory and published edge; below, the networks."""
    figure, axes = figure_of(2, 3)
    published = dict(zip(FACTORS, PUBLISHED["figure7"]["largest_singular_value"], strict=True))
    for ax, factor in zip(axes.flat, dataset["factor"].values.tolist(), strict=False):
        plot_singular_values(dataset.sel(factor=[factor]), ax=ax)
        ax.plot(published[factor], 0, "o", mfc="none", mec="0.2", ms=8, clip_on=False, label="published edge")
        ax.legend()
        ax.set_title(f"M = {factor}, N = {dataset.attrs['size']}")
    plot_effective_rank(dataset, ax=axes[1, 0]).set_title("image to features, at initialization")
    if HIDDEN in dataset:
        plot_effective_rank(dataset, of=HIDDEN, ax=axes[1, 1]).set_title(
            f"features of {dataset.attrs['networks_batch_size']} images, at initialization"
        )
    for ax in axes.flat:
        if not ax.has_data():
            ax.remove()
    return figure


def _near_zero(dataset: xr.Dataset, factor: int) -> xr.DataArray:
    """The share of the singular values below a tenth of the theory's edge, draw by draw."""
    of = dataset.sel(factor=factor)
    return (of["singular_value"] < 0.1 * of["edge"]).mean("index")


def _conditions(dataset: xr.Dataset) -> Bounded:
    """The condition number of the longest product over that of a single matrix, draw by draw; with a bound below the
    line nothing is known of a ratio."""
    many, few = (dataset.sel(factor=factor) for factor in (max(FACTORS), min(FACTORS)))
    known = few["condition_number"].where(~few["condition_is_bound"])
    return Bounded(many["condition_number"] / known, many["condition_is_bound"].values)


def _rank_kept(dataset: xr.Dataset, family: str, norm: str, name: str = JACOBIAN) -> np.ndarray:
    """The effective rank in the deepest network over that in the shallowest, of the Jacobian or of the features."""
    of = dataset[name].sel(family=family, norm=norm)
    return (of.isel(depth=-1) / of.isel(depth=0)).values


def _rank_gained(dataset: xr.Dataset, family: str, name: str = JACOBIAN) -> np.ndarray:
    """The effective rank in the deepest network with batch norm over that without, of the Jacobian or of the
    features."""
    of = dataset[name].sel(family=family).isel(depth=-1)
    return (of.sel(norm="batch") / of.sel(norm="none")).values


WITH_HIDDEN = Scope("results that hold the features' rank", lambda dataset: HIDDEN in dataset)

_LARGEST = dict(zip(FACTORS, PUBLISHED["figure7"]["largest_singular_value"], strict=True))

CLAIMS = [
    *(
        Claim(
            statement=f"M = {factor}: the largest singular value is the theory's {fuss_catalan_edge(factor):.3g} "
            "within 3 %",
            value=lambda dataset, one=factor: dataset["largest"].sel(factor=one).values,
            equals=fuss_catalan_edge(factor),
            margin=0.03 * fuss_catalan_edge(factor),
            paper=_LARGEST[factor],
            note="over draws",
        )
        for factor in FACTORS
    ),
    *(
        Claim(
            statement=f"M = {factor}: the spectrum follows the Fuss–Catalan law, Kolmogorov–Smirnov at most 0.01",
            value=lambda dataset, one=factor: dataset["ks_distance"].sel(factor=one).values,
            below=0.01,
            note="over draws",
        )
        for factor in FACTORS
    ),
    Claim(
        statement=f"Mass piles up at zero: with M = {max(FACTORS)} more than half lies below a tenth of the edge",
        value=partial(_near_zero, factor=max(FACTORS)),
        above=0.5,
        paper="piles up at 0",
        note="over draws",
        detail=lambda dataset: (
            f"with M = {min(FACTORS)} the share is {float(_near_zero(dataset, min(FACTORS)).mean()):.2g}"
        ),
    ),
    RatioClaim(
        statement=f"The condition number with M = {max(FACTORS)} is at least 1000 times that with M = {min(FACTORS)}",
        value=_conditions,
        above=1000,
        note="paired by draw",
    ),
    *(
        RatioClaim(
            statement=f"{family} {NORM_TITLES[norm]}: {DEPTHS[-1]} layers have at most half the rank of {DEPTHS[0]}",
            where="beside Figure 7",
            kind=CONTROL,
            value=partial(_rank_kept, family=family, norm=norm),
            below=0.5,
            note="paired by seed; effective rank of d features / d image",
        )
        for family in FAMILIES
        for norm in NORMS
    ),
    *(
        RatioClaim(
            statement=f"{family}{DEPTHS[-1]}: batch norm gives a Jacobian of higher effective rank",
            where="beside Figure 7",
            kind=CONTROL,
            value=partial(_rank_gained, family=family),
            above=1,
            note="paired by seed; effective rank of d features / d image",
        )
        for family in FAMILIES
    ),
    *(
        RatioClaim(
            statement=f"{family}: without BN the features of different images align with depth, {DEPTHS[-1]} layers "
            f"have a lower rank over images than {DEPTHS[0]}",
            where="Daneshmand et al. 2020",
            kind=LATER_WORKS,
            value=partial(_rank_kept, family=family, norm="none", name=HIDDEN),
            below=1,
            note=f"paired by seed; effective rank of the features over {BATCH_SIZE} images",
            scope=WITH_HIDDEN,
        )
        for family in FAMILIES
    ),
    *(
        RatioClaim(
            statement=f"{family}{DEPTHS[-1]}: batch norm keeps the features of different images apart, their rank over "
            "images is higher than without",
            where="Daneshmand et al. 2020",
            kind=LATER_WORKS,
            value=partial(_rank_gained, family=family, name=HIDDEN),
            above=1,
            note=f"paired by seed; effective rank of the features over {BATCH_SIZE} images",
            scope=WITH_HIDDEN,
        )
        for family in FAMILIES
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """The effective ranks of the deepest networks, in one sentence."""
    rank = dataset[JACOBIAN].isel(depth=-1).median("seed")
    deep = int(rank["depth"])
    parts = [
        f"{family}{deep} {float(rank.sel(family=family, norm='none')):.2g} without batch norm and "
        f"{float(rank.sel(family=family, norm='batch')):.2g} with it"
        for family in rank["family"].values.tolist()
    ]
    return (
        f"Of {dataset.sizes['feature']} directions in which the features could move, so many carry the "
        "Jacobian (effective rank, median over seeds): "
        f"{'; '.join(parts)}."
    )


EXHIBIT = Exhibit(
    name="figure7",
    title="Products of random matrices are ill-conditioned",
    where="Figure 7",
    place=7,
    paper_saw=(
        "A network at initialization is a product of random matrices. Multiply M random N × N matrices of "
        "variance 1/N: from M = 1 to 5 the largest singular value grows from 2.0 to 3.86, and the mass piles "
        "up at zero. So a deep network hears few directions of its input far too loudly, the rest hardly."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    of_any_network=True,
    protocol=2,
)
