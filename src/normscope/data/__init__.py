"""Labelled images, whole on the device: the embedded digits and CIFAR-10, in seeded batches.

The names, listed in the stub beside this file, are found on first use: what only checks a config loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
