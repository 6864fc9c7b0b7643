"""normscope: ask a network why it cannot take a larger learning rate, and what normalization would buy it.

>>> import normscope as ns
>>> net = ns.build_net("resnet20", norm="none", in_channels=1, seed=0)  # or any nn.Module
>>> batch = next(ns.batches(ns.load_data("digits"), 64, seed=0))  # or (images, labels)
>>> dataset = ns.relative_loss(net, batch)
>>> _ = ns.plot_relative_loss(dataset)

The names below are found on first use, so that importing normscope costs little beside importing torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
