"""
Output gradients: do all examples push the same way?
====================================================

Examples downwards, classes to the right. A solid red column is a network that is sure of one class whatever it sees:
the gradients of all examples add up. With batch norm in front of the last layer it is less sure, and they cancel more.
"""

import matplotlib.pyplot as plt
from deep_cnn import net

import normscope as ns

batch = next(ns.batches(ns.load_data("digits"), 64, seed=0))
broken = net(seed=0)
mended = ns.with_norm(broken, "batch", batch=batch)

axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")[1]
for ax, title, model in [(axes[0], "as it is", broken), (axes[1], "with batch norm", mended)]:
    dataset = ns.output_gradients(model, batch)
    print(f"{title}: two examples' gradients have cosine {float(dataset['mean_cosine']):.2f} on average")
    ns.plot_output_gradients(dataset, ax=ax)
    ax.set_title(title)
