"""
Moments along a step: where do the activations explode?
=======================================================

Twice the step that diverges, in 40 parts: one column a channel, the step upwards, the colour its variance. Early layers
change little; in the last ones nothing happens until the end of the step, and then everything.
"""

import matplotlib.pyplot as plt
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
model = net(seed=0)
step = 2 * float(ns.relative_loss(model, batch)["divergence_step_size"])

layers = ["blocks.0.conv2", "blocks.6.conv2", "blocks.13.conv2"]
dataset = ns.moments_along_step(model, batch, step_size=step, layers=layers)
print((dataset["variance"].max("channel").sel(layer=layers).isel(fraction=[0, -1])).to_pandas())
axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")[1]
for ax, layer in zip(axes, layers, strict=True):
    ns.plot_moments_along_step(dataset, layer=layer, ax=ax)
    ax.set_title(layer)
