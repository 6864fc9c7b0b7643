"""The paper's networks: `build_net` by name, or the classes themselves.

The names, listed in the stub beside this file, are found on first use: what only checks a config loads no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
