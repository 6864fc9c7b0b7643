"""A network's rates, what limits them and what repairs buy: `normscope.check` and its report."""
