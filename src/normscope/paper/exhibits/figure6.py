"""Figure 6: the gradient of the loss at the logits, image by image, at initialization."""

import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.output_gradients import plot_output_gradients
from normscope.figures.style import figure_of
from normscope.paper.exhibit import NORM_TITLES, Exhibit, Setting, over_networks
from normscope.paper.published import PUBLISHED
from normscope.probes.output_gradients import output_gradients
from normscope.statistics.verdict import Verdict, judge

NORMS = ("none", "batch")
"""In the paper's order: the network without batch norm on the left."""

WHERE = {"none": "Without batch norm", "batch": "with it"}
LARGEST_WITH_BN = 0.004
"""What the paper's largest column with batch norm mostly stays below, of a top value of 1/128."""


def measure(setting: Setting) -> xr.Dataset:
    """The gradients on the first mini-batch of training, before any step."""

    def measure_one(norm: str, seed: int) -> xr.Dataset:
        return output_gradients(setting.build(norm, seed), setting.first_batch(seed))

    return over_networks(setting, "figure6", measure_one, norms=NORMS)


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


def verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """One class for all images without batch norm, and rows that differ more with it, paired by seed."""
    with_bn, without = dataset.sel(norm="batch"), dataset.sel(norm="none")
    column = largest_column(dataset)
    limit = LARGEST_WITH_BN / PUBLISHED["figure6"]["top_value"]
    return [
        judge(
            "Without BN, one class holds at least 95 % of the images",
            "Figure 6",
            100 * without["commonest_share"],
            above=95,
            paper="nearly all",
            unit=" %",
        ),
        judge(
            "Without BN, that class's gradient is at its top value 1/|B|: half of the images are above 0.9 of it",
            "Figure 6",
            column.sel(norm="none"),
            above=0.9,
            paper="1, nearly everywhere",
            unit="/|B|",
        ),
        judge(
            f"With BN, the largest column is mostly below {LARGEST_WITH_BN} for 128 images, {limit:.2g}/|B|",
            "Figure 6",
            column.sel(norm="batch"),
            below=limit,
            paper=f"below {limit:.2g}",
            unit="/|B|",
            note="median over the images in the class with the largest mean gradient",
        ),
        judge(
            "With BN the images' gradients differ more: the mean cosine of two is lower than without",
            "Figure 6",
            with_bn["mean_cosine"] - without["mean_cosine"],
            below=0,
            note="difference, paired by seed",
        ),
        judge(
            "With BN a smaller part of the gradient is the same for all images than without",
            "Figure 6",
            with_bn["common_part"] - without["common_part"],
            below=0,
            note="difference of ‖mean row‖² / mean ‖row‖², paired by seed",
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
    verdicts=verdicts,
    we_saw=we_saw,
)
