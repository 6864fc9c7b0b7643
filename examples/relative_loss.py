"""
How far can one step go?
========================

Relative loss along the gradient, for a ResNet-20 without norms and the same network with batch norm.
"""

import xarray as xr

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = ns.build_net("resnet20", norm="none", in_channels=1, seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

both = xr.concat([ns.relative_loss(model, batch) for model in (broken, mended)], xr.Variable("norm", ["none", "batch"]))
print(both["divergence_step_size"].to_series())
ns.plot_relative_loss(both)
