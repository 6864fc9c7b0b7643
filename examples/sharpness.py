"""
Sharpness along a training: a series of checkpoints
===================================================

The Hessian's largest eigenvalue every few steps of SGD: it falls from its start and climbs towards 2/lr (dash-dotted),
the edge of what a parabola allows at this rate.
"""

import torch
import xarray as xr

import normscope as ns

data, lr = ns.load_data("digits"), 0.2
model = ns.build_net("mlp4", norm="none", in_channels=1, image_size=8, seed=0)
optimizer = torch.optim.SGD(model.parameters(), lr=lr)
batch = next(ns.batches(data, 256, seed=1))

parts, steps = [], []
for step, (images, labels) in zip(range(201), ns.batches(data, 128, seed=0), strict=False):
    if step % 20 == 0:
        parts.append(ns.sharpness(model, batch, lr=lr))
        steps.append(step)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()

series = xr.concat(parts, xr.Variable("step", steps), combine_attrs="drop_conflicts")
print(f"largest eigenvalue at the end: {float(series['eigenvalue'][-1, 0]):.1f}; 2/lr: {2 / lr:.0f}")
ns.plot_sharpness(series, along="step")
