"""
Other norms in the same network
===============================

``with_norm`` gives the same network with another norm, weights bit for bit the same: here the step that diverges, for
each kind, in the network that could take none.
"""

import matplotlib.pyplot as plt
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 128, seed=0))
broken = net(seed=0)
kinds = ["none", "batch", "group", "layer", "rms", "tanh"]
steps = [10 ** (k / 4) for k in range(-16, 17)]
limits = []
for kind in kinds:
    model = broken if kind == "none" else ns.with_norm(broken, kind, "everywhere", batch=batch)
    limits.append(float(ns.relative_loss(model, batch, step_sizes=steps)["divergence_step_size"]))
    print(f"{kind:6} diverges at a step of {limits[-1]:.2g}")
plt.barh(kinds, [min(limit, steps[-1]) for limit in limits])
plt.gca().invert_yaxis()
plt.xscale("log")
plt.xlabel("step size at which the loss grows a thousandfold")
