"""How a check shows itself in a notebook: its answer and the figures that prove it, the arrays folded away."""

import xarray as xr

from normscope.checkup.answer import answer
from normscope.diagnosis.notebook import folded

FIGURE = "display: inline-block; width: 30em"


class CheckTree(xr.DataTree):
    """The tree of a check; every other way it is a DataTree."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        arrays = super()._repr_html_()
        if self.parent is not None or "findings" not in self.children:  # one of its nodes
            return arrays
        from normscope.checkup.pictures import proof  # matplotlib is loaded only where something is shown

        pictures = "".join(
            f'<figure style="{FIGURE}">{one.svg}<figcaption>{one.caption}</figcaption></figure>' for one in proof(self)
        )
        return folded(answer(self), pictures, arrays)
