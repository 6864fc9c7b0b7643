"""
Gradient noise: how much of a step is chance?
=============================================

Solid: the variance of a mini-batch's gradient, layer by layer. Dotted: the squared gradient. Where solid lies above
dotted, a step is mostly noise. Under batch norm an example has no gradient of its own, and the batch is taken apart
into mini-batches instead.
"""

import xarray as xr
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 512, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

parts = [ns.gradient_noise(model, batch, batch_size=32) for model in (broken, mended)]
for title, one in zip(["as it is", "with batch norm"], parts, strict=True):
    share = float(one["batch_variance"] / one["gradient_squared_norm"])
    print(f"{title}: decouples into examples: {bool(one['decouples'])}; at |B| = 32 noise over signal {share:.2g}")
ns.plot_gradient_noise(xr.concat(parts, xr.Variable("norm", ["none", "batch"]), combine_attrs="drop_conflicts"))
