"""Figure 6: the gradient of the loss at the logits, image by image, at initialization."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.output_gradients import plot_output_gradients
from normscope.figures.style import figure_of
from normscope.paper.exhibit import DEEP, NORM_TITLES, ON_PAPER_SETTING, Exhibit, Setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.output_gradients import output_gradients
from normscope.statistics.claim import Claim
from normscope.statistics.verdict import CONTROL

NORMS = ("none", "batch")
"""In the paper's order: the network without batch norm on the left."""

WHERE = {"none": "Without batch norm", "batch": "with it"}
LARGEST_WITH_BN = 0.004
"""What the paper's largest column with batch norm mostly stays below, of a top value of 1/128."""


def measure(setting: Setting) -> xr.Dataset:
    """The gradients on the first mini-batch of training, before any step."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        return output_gradients(setting.build(norm, seed), setting.first_batch(seed))

    return over_networks(setting, "figure6", measure_one, {"norm": NORMS})


def largest_column(dataset: xr.Dataset) -> xr.DataArray:
    """The median over images in the class with the largest mean gradient, as a share of the top value 1/|B|, which is
    that of a class that is predicted for sure and wrong."""
    gradient = dataset["gradient"] * dataset.sizes["example"]
    column = gradient.mean("example", skipna=False).fillna(0).argmax("label")
    return gradient.isel(label=column).median("example", skipna=False)


def draw(dataset: xr.Dataset) -> Figure:
    """The paper's two heat maps, images downwards, of the first seed."""
    figure, axes = figure_of(1, len(NORMS), panel=(3.6, 5.0))
    for ax, norm in zip(axes.flat, NORMS, strict=True):
        plot_output_gradients(dataset.isel(seed=0).sel(norm=norm), ax=ax)
        ax.set(title=NORM_TITLES[norm], xticks=dataset["label"].values)
    return figure


def published_picture(dataset: xr.Dataset) -> np.ndarray:
    """With batch norm, as decoded from the published picture, (seed, 2): the share of the images whose largest entry
    beside their label's is that of the class for which it most often is; the median of that class's column, in
    1/|B|."""
    gradient = dataset["gradient"].sel(norm="batch").transpose("seed", "example", "label").values
    found = []
    for of_seed in gradient * gradient.shape[1]:
        counts = np.bincount(of_seed.argmax(1), minlength=of_seed.shape[1])  # at its own label an entry is negative
        found.append((counts.max() / len(of_seed), np.median(of_seed[:, counts.argmax()])))
    return np.array(found)


_PUBLISHED = PUBLISHED["figure6"]
_LIMIT = LARGEST_WITH_BN / _PUBLISHED["top_value"]
_DECODED = _PUBLISHED["batch"]

CLAIMS = [
    Claim(
        statement="Without BN, one class holds at least 95 % of the images",
        value=lambda dataset: 100 * dataset["commonest_share"].sel(norm="none"),
        above=95,
        paper="nearly all",
        unit=" %",
        scope=DEEP,
    ),
    Claim(
        statement="Without BN, that class's gradient is at its top value 1/|B|: half of the images are above 0.9 of it",
        value=lambda dataset: largest_column(dataset).sel(norm="none"),
        above=0.9,
        paper="1, nearly everywhere",
        unit="/|B|",
        scope=DEEP,
    ),
    Claim(
        statement=f"With BN, the largest column is mostly below {LARGEST_WITH_BN} for 128 images, {_LIMIT:.2g}/|B|",
        value=lambda dataset: largest_column(dataset).sel(norm="batch"),
        below=_LIMIT,
        paper=f"below {_LIMIT:.2g}",
        unit="/|B|",
        note="median over the images in the class with the largest mean gradient",
        scope=DEEP,
    ),
    Claim(
        statement="With BN too, one class is the largest for most images, less surely: its published share and median "
        "could be one more seed's",
        of="band",
        value=published_picture,
        published=[
            _DECODED["share_of_commonest_class"],
            float(np.mean(_DECODED["median_of_its_column_times_batch_size"])),
        ],
        points="published numbers",
        widest=1.0,
        paper="0.87, 0.32 to 0.39",
        note="decoded from the published picture, pixel by pixel",
        scope=ON_PAPER_SETTING,
    ),
    Claim(
        statement="With BN the images' gradients differ more: the mean cosine of two is lower than without",
        value=lambda dataset: dataset["mean_cosine"].sel(norm="batch") - dataset["mean_cosine"].sel(norm="none"),
        below=0,
        note="difference, paired by seed",
        scope=DEEP,
    ),
    Claim(
        statement="With BN a smaller part of the gradient is the same for all images than without",
        where="beside Figure 6",
        kind=CONTROL,
        value=lambda dataset: dataset["common_part"].sel(norm="batch") - dataset["common_part"].sel(norm="none"),
        below=0,
        note="difference of ‖mean row‖² / mean ‖row‖², paired by seed",
        scope=DEEP,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    names = ("commonest_share", "mean_cosine", "common_part")
    medians = dataset[[*names]].median("seed", skipna=False)
    parts = [
        f"{WHERE[norm]} one class holds {100 * float(of['commonest_share']):.0f} % of the images, two images' "
        f"gradients have a cosine of {float(of['mean_cosine']):.2f} on average, and "
        f"{100 * float(of['common_part']):.0f} % of the squared gradient is common to all"
        for norm in ("none", "batch")
        for of in [medians.sel(norm=norm)]
    ]
    return f"{'; '.join(parts)} (medians over seeds)."


EXHIBIT = Exhibit(
    name="figure6",
    title="The gradient at the logits, at initialization",
    where="Figure 6",
    place=6,
    paper_saw=(
        "Before any training a network without batch norm predicts one class for nearly all images, typically the "
        "wrong one, so that the rows of the gradient at the logits are nearly the same and add up. With batch norm "
        "the positive gradients are spread over the classes and the rows differ much more."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
)
