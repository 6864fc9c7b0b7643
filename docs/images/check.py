"""The README's picture, from what a check has measured:

normscope check examples/deep_cnn.py:net --repair batch
python docs/images/check.py check/net/check.nc
"""

import sys
from pathlib import Path

import normscope as ns
from normscope.figures.descents import plot_descents
from normscope.figures.size_along_step import plot_size_along_step
from normscope.figures.style import COLORS, figure_of
from normscope.statistics.numbers import number

tree = ns.load_tree(sys.argv[1])
figure, axes = figure_of(1, 2, panel=(5.2, 3.7))
figure.get_layout_engine().set(wspace=0.05)
why, repaired = axes[0]

plot_size_along_step(tree["as_it_is/evidence"].to_dataset(), ax=why)
why.set_title("")
why.set_title("Why it cannot learn: one step\nmakes activations explode, layer by layer", loc="left")
why.set_ylabel("size of the activations")
why.get_legend().remove()
why.lines[0].set(color="0.5")
for line, text, at in [(why.lines[0], "before the step", 11), (why.lines[-1], "after the step", -5)]:
    x, y = line.get_xydata()[at]
    why.annotate(text, (x, y), (-10, 6), textcoords="offset points", ha="right", color=line.get_color())

for node, color, name, height in [
    ("as_it_is", "none", "as it is", 2.75),
    ("repairs/batch", "batch", "with batch norm everywhere", 0.2),
]:
    rates = tree[f"{node}/rates"].to_dataset()
    lr = float(rates["lr_recommended"])
    plot_descents(rates, lrs=[lr], color=COLORS[color], ax=repaired)
    end = rates.sizes["step"] - 1
    repaired.text(end, height, f"{name}, at lr = {number(lr)}", ha="right", color=COLORS[color])
repaired.get_legend().remove()
repaired.text(end, 2.22, "guessing", ha="right", va="top", color="0.35")
repaired.set(title="", yscale="linear", ylim=(0, 5), ylabel="training loss [nat]", xlabel="step of the descent")
repaired.set_title("What the repair buys, measured:\nbatch norm learns where nothing learned before", loc="left")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=160, facecolor="white")
