"""The paper's questions asked of somebody's own model: `normscope.check(model, batches)`, see `check.check`."""

from normscope.callable_package import make_callable

make_callable(__name__, "normscope.check.check")
