"""
Predicted rates: what can be said before any training?
======================================================

Ten passes on one mini-batch predict the rate to train at and the largest stable one, with intervals; nothing is
trained. Here they lie over the loss after one step of the optimizer at each rate.
"""

import normscope as ns

data = ns.load_data("digits")
net = ns.build_net("mlp4", norm="none", in_channels=1, image_size=8)
told = ns.predict_lr(net, ns.batches(data, 32, seed=0), optimizer="adam", lr=1.0)

batch = next(ns.batches(data, 32, seed=0))
rates = [10 ** (k / 4) for k in range(-20, 9)]
ax = ns.plot_relative_loss(ns.relative_loss(net, batch, optimizer="adam", step_sizes=rates))
for name, words, color in [("lr_recommended", "train at", "#2e8b57"), ("lr_stable", "stable up to", "#c8442c")]:
    middle, low, high = (float(told[name + end]) for end in ("", "_low", "_high"))
    print(f"{words} {middle:.2g}, somewhere between {low:.2g} and {high:.2g}")
    ax.axvspan(low, high, color=color, alpha=0.2, lw=0, label=f"{words} about {middle:.2g}")
print(f"at 1.0 it diverges with probability {float(told['diverges']):.2f}")
ax.legend(loc="lower right")
