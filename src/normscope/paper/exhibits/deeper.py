"""The same in a deeper network: batch norm everywhere, before the last layer alone, and nowhere, each at one rate."""

import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.style import COLORS, NAMES, figure_of
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.exhibits.figure1 import trained_on
from normscope.paper.exhibits.final import best, share_recovered
from normscope.paper.published import PUBLISHED
from normscope.paper.scale import scale_of
from normscope.results import attribute
from normscope.statistics.claim import Claim

LEAST_TO_MOST = ("none", "final", "batch")


def measure(setting: Setting) -> xr.Dataset:
    """Each norm at the one rate that the scale gives it."""
    return trained_on(setting, scale_of(setting.scale).deeper_configs(setting.seeds, setting.device))


_PUBLISHED = PUBLISHED["variants"]["test_accuracy_percent"]

CLAIMS = [
    Claim(
        statement="Deeper, batch norm at its large rate ends at least 1 point above the network without it at a rate "
        "that it can take",
        value=lambda dataset: best(dataset).sel(norm="batch") - best(dataset).sel(norm="none"),
        above=1,
        unit=" points",
        paper=f"about {_PUBLISHED['batch'] - _PUBLISHED['none']:+.0f}",
        note="one rate for each norm; test accuracy at the end, paired by seed",
    ),
    share_recovered(
        "Deeper, batch norm before the last layer alone recovers at least half of that", best, "one rate for each norm"
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Means over seeds, in words."""
    scale, accuracy = scale_of(attribute(dataset, "scale")), best(dataset).mean("seed")
    ends = ", ".join(
        f"{NAMES[norm]} at {scale.deeper_lrs[norm]:g}: {float(accuracy.sel(norm=norm)):.1f} %" for norm in LEAST_TO_MOST
    )
    network = str(scale.deeper_net).replace("resnet", "ResNet-")
    return f"{network}, test accuracy at the end: {ends}. {scale.reduced}"


def draw(dataset: xr.Dataset) -> Figure:
    """Test accuracy at the end, one point a seed."""
    figure, axes = figure_of(1, 1, panel=(6.4, 3.4))
    ax, accuracy, scale = axes[0, 0], best(dataset), scale_of(attribute(dataset, "scale"))
    for place, norm in enumerate(LEAST_TO_MOST):
        values = accuracy.sel(norm=norm).values
        ax.plot([place] * len(values), values, "o", color=COLORS[norm])
    names = [f"{NAMES[norm]},\nat {scale.deeper_lrs[norm]:g}" for norm in LEAST_TO_MOST]
    ax.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 100), ylabel="test accuracy [%]")
    ax.tick_params(axis="x", labelsize="small")
    ax.margins(x=0.2)
    return figure


EXHIBIT = Exhibit(
    name="deeper",
    title="Batch norm in a deeper network",
    where="Variants",
    place=1.55,
    paper_saw=(
        "The paper's network of 110 layers ends at about 83 per cent without, at 90 with a single batch norm in front "
        "of the last layer and at 93 with batch norm in every layer. The other exhibits here train a shallower one."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
    applies=lambda setting: scale_of(setting.scale).deeper_net is not None,
)
