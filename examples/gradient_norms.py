"""
Gradient norms: how large a part of each weight does a step change?
===================================================================

The update ratio is what one step of SGD at rate 1 changes of a weight, as a share of its norm. Times the learning rate
it should lie well below 1 in every layer.
"""

import xarray as xr
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

both = xr.concat(
    [ns.gradient_norms(model, batch) for model in (broken, mended)], xr.Variable("norm", ["none", "batch"])
)
print(both["update_ratio"].max("layer").to_series().round(2))
ns.plot_gradient_norms(both, quantity="update_ratio")
