"""The rows of a check's table: what every variant, the model as it is and each repair, came to."""

import math
from dataclasses import dataclass
from typing import Any

import xarray as xr

from normscope.statistics.numbers import number

AS_IT_IS, RATES_AS_IT_IS = "as it is", "the rates as it is"

MEASURED, REFUSED, LEFT_OUT, NOT_TRIED = "measured", "refused", "left out", "not tried"


@dataclass(frozen=True)
class Row:
    """One variant of the tree's own Dataset, see `checkup.check`."""

    variant: str
    title: str
    status: str
    reason: str
    cut: bool
    """Whether time ended its search: then nothing is concluded from it."""
    lr_recommended: float
    lr_stable: float
    lr_usable: float
    lr_recommended_found: str
    lr_stable_found: str
    lr_usable_found: str
    best_low: float
    best_high: float
    horizon_loss: float
    lr_stable_high: float = math.nan
    """The upper ends of both brackets; inf where nothing failed, NaN in an older result."""
    lr_usable_high: float = math.nan
    eval_loss: float = math.nan
    """After the same descent, in evaluation mode and in training mode; NaN of a model without running averages, or in
    an older result."""
    train_mode_loss: float = math.nan

    @property
    def best(self) -> str:
        """The rates tied with the one to train at."""
        low, high = number(self.best_low), number(self.best_high)
        return low if low == high else f"{low} to {high}"

    @property
    def stable(self) -> str:
        """The largest stable rate, as a bound or with ≈ where the search ended before it was bracketed."""
        return _boundary(self.lr_stable, self.lr_stable_found, self.lr_stable_high)

    @property
    def usable(self) -> str:
        """The largest usable rate in the same way; "nowhere" where there is none."""
        nowhere = self.known and self.lr_usable_found == "nowhere"
        return "nowhere" if nowhere else _boundary(self.lr_usable, self.lr_usable_found, self.lr_usable_high)

    @property
    def known(self) -> bool:
        """Whether it was measured, and there was time to find any rates."""
        return self.status == MEASURED and not (math.isnan(self.lr_stable) and self.lr_stable_found == "unfinished")

    @property
    def train_at(self) -> str:
        """The rate to train at; "nowhere" where none lowers the loss."""
        return "nowhere" if self.lr_recommended_found == "nowhere" else number(self.lr_recommended)

    @property
    def comparable(self) -> bool:
        """Whether its loss may be compared with another variant's: its search came to its end."""
        return self.status == MEASURED and not self.cut and self.lr_recommended_found != "unfinished"


def rows(tree: xr.DataTree) -> list[Row]:
    """Every variant, the model as it is first."""
    dataset = tree.to_dataset()

    def value(name: str, place: int) -> Any:
        return dataset[name].values[place].item() if name in dataset else math.nan

    return [
        Row(str(variant), **{name: value(name, i) for name in Row.__dataclass_fields__ if name != "variant"})
        for i, variant in enumerate(dataset["variant"].values)
    ]


def _boundary(value: float, found: str, high: float) -> str:
    if found == "unfinished" and math.isfinite(value):
        return f"{'≥' if math.isinf(high) else '≈'} {number(value)}"
    return "any tried" if math.isinf(value) else number(value)
