"""
Histogram of a gradient: a bell, or a few entries far out?
==========================================================

The entries of one kernel's gradient, counted on a logarithmic axis: the dashed parabola is the normal distribution of
the same spread. Without norms the tails leave it.
"""

import matplotlib.pyplot as plt
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")[1]
for ax, title, model in [(axes[0], "as it is", broken), (axes[1], "with batch norm", mended)]:
    dataset = ns.gradient_histogram(model, batch)
    one = dataset.sel(layer="blocks.6.conv1")
    print(f"{title}: std {float(one['std']):.2g}, kurtosis {float(one['kurtosis']):.3g} (a normal one has 3)")
    ns.plot_gradient_histogram(dataset, layer="blocks.6.conv1", ax=ax)
    ax.set_title(title)
