"""
Learning rates: where does it diverge, and where does it learn?
===============================================================

Short descents at rates found by bisection. One point a try, its colour what became of it; bands are the brackets of the
two boundaries.
"""

import normscope as ns

data = ns.load_data("digits")


def build(seed):
    return ns.build_net("mlp4", norm="none", in_channels=1, image_size=8, seed=seed)


dataset = ns.stable_lr(build, lambda seed: ns.batches(data, 32, seed=seed), optimizer="adam", steps=50, seeds=2)
print(f"stable up to {float(dataset['lr_stable']):.2g}, learns up to {float(dataset['lr_usable']):.2g}")
ns.plot_stable_lr(dataset)
