"""How a diagnosis shows itself in a notebook: its text first, the arrays behind it folded away."""

import html

import xarray as xr

from normscope.diagnosis.words import findings_text


class DiagnosisTree(xr.DataTree):
    """The tree of a diagnosis; every other way it is a DataTree."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        arrays = super()._repr_html_()
        return folded(findings_text(self), "", arrays) if "findings" in self.children else arrays


def folded(text: str, pictures: str, arrays: str) -> str:
    """HTML of a text, its pictures, and the arrays to be unfolded."""
    return (
        f"<pre>{html.escape(text)}</pre>{pictures}<details><summary>All that was measured</summary>{arrays}</details>"
    )
