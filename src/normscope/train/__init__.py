"""One run: its config, its checkpoint, its result. `normscope.train(config)`, see `train.train`."""

from normscope.callable_package import make_callable

make_callable(__name__, "normscope.train.train")
