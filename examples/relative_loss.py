"""
Relative loss: how far can one step go?
=======================================

A 30-layer network without norms, and the same one with batch norm: the loss after one step along the gradient, over the
loss before. The distance between the lowest point and the wall is the room that a learning rate has.
"""

import xarray as xr
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

parts = [
    ns.relative_loss(model, batch, step_sizes=[10 ** (k / 8) for k in range(-40, 17)]) for model in (broken, mended)
]
both = xr.concat(parts, xr.Variable("norm", ["none", "batch"]))
for norm in both["norm"].values:
    one = both.sel(norm=norm)
    print(
        f"{norm}: lowest at {float(one['lowest_step_size']):.2g}, diverges at {float(one['divergence_step_size']):.2g}"
    )
ns.plot_relative_loss(both)
