"""
Cancellation: do the summands of a gradient agree?
==================================================

A kernel's gradient is a sum over images and positions. The ratio of the sum of absolute values to the absolute value of
the sum is 1 where all summands share their sign (dotted), and about √n where their signs are independent (dashed).
"""

import xarray as xr
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

parts = [ns.gradient_cancellation(model, batch) for model in (broken, mended)]
both = xr.concat(parts, xr.Variable("norm", ["none", "batch"]), combine_attrs="drop_conflicts")
print(both["ratio"].median("layer").to_series())
ns.plot_gradient_cancellation(both)
