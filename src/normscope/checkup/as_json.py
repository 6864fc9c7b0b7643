"""The answer of a check for machines."""

import json
from typing import Any

import xarray as xr

from normscope.checkup.answer import notes
from normscope.checkup.headline import cut, headline, longer_training, rates_were_tried
from normscope.checkup.limits import learns, limits_title
from normscope.checkup.rows import rows
from normscope.diagnosis.words import findings_content, finite
from normscope.results import attribute

SCHEMA, SCHEMA_VERSION = "normscope.check", 1
"""The version grows when a field goes or changes its meaning, and not when one is added."""

RATES = ("lr_recommended", "lr_stable", "lr_usable", "best_low", "best_high", "horizon_loss", "eval_loss")
FOUND = ("lr_recommended_found", "lr_stable_found", "lr_usable_found")


def check_json(tree: xr.DataTree) -> str:
    """A check as JSON.

    `schema` and `version` name the format. Of the run: `model`, `data`, `parameters`, `optimizer`, `steps`, `seeds`.
    `headline` and `verdict` are its first sentences; `rates_tried` says whether any rate was tried, `learns` whether
    every seed learns, `cut` what time ended. `variants`, the model as it is first, each with `name`, `title`, `status`,
    `reason`, `cut`, the rates `lr_recommended`, `lr_stable`, `lr_usable`, `best_low` and `best_high`, how each was
    found (`..._found`), `horizon_loss` and, of models with running averages, `eval_loss`. `own_rate` is null, or has
    `lr`, `judgement`, `passes`, `fails`, `loss`, `better_lr`, `better_loss`, `diverged_step`, `diverged_layer` and, for
    every seed, `outcome`. `longer_training` is null, or has what `stable_lr` gives with `train_steps`. `findings`,
    `training` and `skipped` are as in `normscope.findings`. Numbers that are not finite are null: a rate's `..._found`
    says whether it lies above the range searched.
    """
    attrs = tree.attrs
    own: dict[str, Any] | None = None
    if "own_rate" in tree.children:
        dataset = tree["own_rate"].to_dataset()
        own = {str(name): array.values.tolist() for name, array in dataset.data_vars.items()}
    rates = longer_training(tree)
    longer: dict[str, Any] | None = None
    if rates is not None:
        names = ("lr_for_training", "lr_for_training_low", "lr_for_training_high", "lr_at_length", "loss_at_length")
        longer = {name: rates[name].values.tolist() for name in ("length", *names)}
        longer |= {name: attribute(rates, name) for name in ("train_steps", "cooldown")}
    names = ("title", "status", "reason", "cut", *RATES, *FOUND)
    content = {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        **{name: _plain(attrs.get(name)) for name in ("model", "data", "parameters", "optimizer", "steps", "seeds")},
        "headline": headline(tree),
        "verdict": limits_title(tree) if "findings" in tree.children else "",
        "rates_tried": rates_were_tried(tree),
        "learns": rates_were_tried(tree) and learns(tree),
        "cut": cut(tree),
        "variants": [{"name": row.variant, **{name: getattr(row, name) for name in names}} for row in rows(tree)],
        "own_rate": own,
        "longer_training": longer,
        "notes": notes(tree),
        **{k: v for k, v in findings_content(tree).items() if k not in ("schema", "version")},
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
