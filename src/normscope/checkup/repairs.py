"""What could be done about a small rate, by name: norms, initializations, and the rivals of norm."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from normscope.errors import InvalidConfig, NormscopeError, unknown
from normscope.model.batch import Batch
from normscope.model.build import ModelOrBuild, build_model
from normscope.model.loss import LossFn
from normscope.nets.names import BRANCH_INITS, INITS, NORMS, PARTS
from normscope.nets.weight_norms import WEIGHT_NORMS
from normscope.surgery import with_init, with_norm
from normscope.surgery.places import existing_norms
from normscope.surgery.residual import (
    has_post_norm,
    with_pre_norm,
    with_qk_norm,
    with_small_output,
    with_small_residual,
)

DEFAULT_REPAIRS: tuple[str, ...] = ("final", "batch", "zero_residual", "both")
"""What `check` measures of a network with convolutions, or of one that is told by nothing."""

TRANSFORMER_REPAIRS: tuple[str, ...] = ("rms", "qk_norm", "small_output", "small_residual", "both")
"""... of one with attention or embeddings, where norms over a batch mix positions and examples; `pre_norm` in the place
of `rms` where its norms stand behind the branches."""

TRANSFORMER_WORDS = ("attention", "attn", "embedding", "transformer", "rotary")
"""Parts of the names of modules' types that tell such a network."""

CLIP_NORM = 1.0
"""To which the gradient's norm is clipped: what is customary."""

WARMUP_SHARE = 0.2
"""Share of the steps over which warmup raises the rate."""

NORM_REPAIRS: tuple[str, ...] = tuple(kind for kind in (*NORMS, *PARTS, *WEIGHT_NORMS) if kind != "none")
INIT_REPAIRS: tuple[str, ...] = tuple(kind for kind in (*INITS, *BRANCH_INITS) if kind != "default")
RIVALS: tuple[str, ...] = ("warmup", "clipping", "both")
RESIDUAL_REPAIRS: tuple[str, ...] = ("pre_norm", "qk_norm", "small_residual", "small_output")
REPAIRS: tuple[str, ...] = ("final", *NORM_REPAIRS, *INIT_REPAIRS, *RESIDUAL_REPAIRS, *RIVALS)
"""Every repair by name; several at once are joined by `+`, as in `batch+warmup`."""

NORM_TITLES = {
    "batch": "batch norm",
    "group": "group norm",
    "layer": "layer norm",
    "rms": "RMS norm",
    "instance": "instance norm",
    "tanh": "dynamic tanh",
    "batch_mean": "mean-only batch norm",
    "batch_std": "batch norm without centring",
    "batch_detached": "batch norm with constant statistics",
    "batch_first": "batch norm frozen at the first batch",
    "batch_running": "batch norm by running averages",
    "batch_ghost": "batch norm over ghost batches",
    "weight_mean": "weight norm with mean-only batch norm",
    "weight_std": "scaled weight standardization",
}


RESIDUAL_TITLES = {
    "pre_norm": "norms in front of the branches",
    "qk_norm": "norms on queries and keys",
    "small_residual": "smaller residual branches",
    "small_output": "a smaller output layer",
}


@dataclass(frozen=True)
class Repair:
    """One change, or several at once."""

    name: str
    parts: tuple[str, ...]
    warmup: int = 0
    """Steps over which the rate rises."""
    clip_norm: float | None = None

    def title(self, model: nn.Module) -> str:
        """What it does to this model, in words: "batch norm everywhere, warmup over 20 steps"."""
        has_norms = bool(existing_norms(model))
        return ", ".join(self._title(part, has_norms) for part in self.parts)

    @property
    def changes_model(self) -> bool:
        """Whether the network is another, and not only how it is trained."""
        return any(part not in RIVALS for part in self.parts)

    def _title(self, part: str, has_norms: bool) -> str:
        if part == "final":
            return "batch norm before the last layer" + (" alone, instead of its norms" if has_norms else "")
        if part == "warmup":
            return f"warmup over {self.warmup} steps"
        if part == "clipping":
            return f"clipping at {self.clip_norm:g}"
        if part in NORM_TITLES:
            return f"{NORM_TITLES[part]} {'instead of its norms' if has_norms else 'everywhere'}"
        if part in RESIDUAL_TITLES:
            return RESIDUAL_TITLES[part]
        return f"{part} init"

    def apply(self, model: nn.Module, *, seed: int, batch: Batch, loss_fn: LossFn | None) -> nn.Module:
        """A changed copy of the model; the model itself where only its training is changed.

        Raises:
            InvalidConfig, InvalidModel: where a part cannot be applied to this model; see `with_norm`, `with_init`.
        """
        for part in self.parts:
            if part == "final":
                model = with_norm(model, "batch", "final", batch=batch, loss_fn=loss_fn)
            elif part in NORM_REPAIRS:
                model = with_norm(model, part, batch=batch, loss_fn=loss_fn)
            elif part == "pre_norm":
                model = with_pre_norm(model)
            elif part == "qk_norm":
                model = with_qk_norm(model, batch=batch, loss_fn=loss_fn)
            elif part == "small_residual":
                model = with_small_residual(model, batch=batch, loss_fn=loss_fn)
            elif part == "small_output":
                model = with_small_output(model, batch=batch, loss_fn=loss_fn)
            elif part in INIT_REPAIRS:
                model = with_init(model, part, seed=seed, batch=batch, loss_fn=loss_fn)
        return model

    def can_be_made(self, model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> bool:
        """Whether this model does not refuse it."""
        try:
            self.apply(model, seed=0, batch=batch, loss_fn=loss_fn)
        except NormscopeError:
            return False
        return True

    def applied_to(self, model_or_build: ModelOrBuild, *, batch: Batch, loss_fn: LossFn | None) -> Any:
        """The same for what `check` was given: a changed instance, or a build of changed models."""
        if not self.changes_model:
            return model_or_build
        if isinstance(model_or_build, nn.Module):
            return self.apply(model_or_build, seed=0, batch=batch, loss_fn=loss_fn)
        build: Callable[..., Any] = model_or_build

        def repaired(seed: int) -> nn.Module:
            return self.apply(build_model(build, seed), seed=seed, batch=batch, loss_fn=loss_fn)

        return repaired


def fitting_repairs(model: nn.Module, batch: Batch = None, loss_fn: LossFn | None = None) -> tuple[str, ...]:
    """The names of the repairs that fit this kind of model; with a batch, of those that can be made of it."""
    names = " ".join({type(module).__name__.lower() for module in model.modules()})
    if not any(word in names for word in TRANSFORMER_WORDS):
        kinds = DEFAULT_REPAIRS
    else:
        kinds = ("pre_norm", *TRANSFORMER_REPAIRS[1:]) if has_post_norm(model) else TRANSFORMER_REPAIRS
    if batch is None:
        return kinds
    return tuple(one.name for one in repairs(kinds, steps=1) if one.can_be_made(model, batch, loss_fn))


def repairs(
    names: Sequence[str], *, steps: int, clip_norm: float = CLIP_NORM, warmup: int | None = None
) -> list[Repair]:
    """Repairs by name, each once; `both` is warmup and clipping.

    Args:
        steps: length of a try; warmup takes a fifth of it where it is not given.

    Raises:
        InvalidConfig: an unknown name; a norm, an initialization or a rival named twice in one repair.
    """
    steps_up = max(1, round(WARMUP_SHARE * steps)) if warmup is None else warmup
    found: dict[str, Repair] = {}
    for name in names:
        parts: list[str] = []
        for part in name.split("+"):
            if part not in REPAIRS:
                raise unknown("repair", part, REPAIRS)
            parts += ("warmup", "clipping") if part == "both" else (part,)
        groups = [("final", *NORM_REPAIRS), INIT_REPAIRS, *((part,) for part in (*RESIDUAL_REPAIRS, *RIVALS[:2]))]
        if any(sum(part in group for part in parts) > 1 for group in groups):
            raise InvalidConfig(f"repair {name!r} asks twice for the same: give one norm, one initialization at most")
        # Initializations first: a norm is put behind weights that are there to stay.
        kinds = (INIT_REPAIRS, RESIDUAL_REPAIRS, groups[0], RIVALS)
        parts.sort(key=lambda part: [part in kind for kind in kinds].index(True))
        found[name] = Repair(
            name,
            tuple(parts),
            steps_up if "warmup" in parts else 0,
            clip_norm if "clipping" in parts else None,
        )
    return list(found.values())
