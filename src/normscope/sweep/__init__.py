"""Many runs: the grid, the store, this machine. `normscope.sweep(spec, out)`, see `sweep.sweep`."""

from normscope.callable_package import make_callable

make_callable(__name__, "normscope.sweep.sweep")
