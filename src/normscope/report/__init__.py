"""Self-contained pages from results alone: `normscope.report(tree, path)`, see `report.check`."""

from normscope.callable_package import make_callable

make_callable(__name__, "normscope.report.check")
