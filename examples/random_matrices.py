"""
Products of random matrices: why depth alone breaks a start
===========================================================

Multiply five random matrices, and most directions die while a few are stretched: bars are singular values, the line is
the Fuss–Catalan law. A deep network at initialization is such a product.
"""

from deep_cnn import Net

import normscope as ns

products = ns.product_singular_values((1, 3, 5), size=400, draws=3)
batch = next(ns.batches(ns.load_data("digits"), 16, seed=0))
for blocks in (2, 14):
    jacobian = ns.input_jacobian(Net(blocks=blocks), batch)
    print(f"{1 + 2 * blocks + 1} layers: {float(jacobian['effective_rank'].mean()):.1f} of 10 directions matter")
ns.plot_singular_values(products.sel(factor=[5]))
