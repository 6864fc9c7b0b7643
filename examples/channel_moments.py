"""
Channel moments: how large are the activations?
===============================================

A straight line upwards is exponential growth: every layer multiplies what it gets. With batch norm behind each layer
there is nothing to multiply.
"""

import xarray as xr
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

both = xr.concat(
    [ns.channel_moments(model, batch) for model in (broken, mended)], xr.Variable("norm", ["none", "batch"])
)
std = both["variance"].mean("channel") ** 0.5
print(std.sel(layer=["blocks.0.conv1", "blocks.13.conv2"]).to_pandas().round(2))
ns.plot_channel_moments(both)
