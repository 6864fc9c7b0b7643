"""What is known of a program before any repair is tried: its layers, its output and loss, its data, its own run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from normscope.descent.optimizers import foreign_parameters, make_optimizer
from normscope.diagnosis.attention import Transformer, transformer
from normscope.diagnosis.batch_tests import feature_statistics
from normscope.diagnosis.first_pass import FirstPass
from normscope.diagnosis.fitted_outputs import fitted_reach
from normscope.diagnosis.loss_terms import Judged, Split, Term, loss_terms, penalty_share
from normscope.diagnosis.mixing import mixing
from normscope.diagnosis.outputs import Chain, Reach, chain, loss_family, reach, target_kind
from normscope.diagnosis.padding import Padding, Unpadded, padding_of
from normscope.diagnosis.positions import blind_to_order
from normscope.diagnosis.program import Program, Run
from normscope.diagnosis.sequences import Order, order_of
from normscope.errors import NormscopeError
from normscope.model.batch import Batch, num_examples, targets_of
from normscope.model.layers import own_parameters, owns_weight, watched_modules
from normscope.model.loss import IGNORED_LABEL, default_loss
from normscope.model.state import seeded, untouched
from normscope.per_example.dropout import WithoutDropout

LEVEL_BATCHES = 20
"""Mini-batches that the loss of the best constant is taken over."""

ALIKE = 1e-5
"""Units are equal where their weights differ by less than this share of the largest."""

NEARLY_NOTHING = 0.01
"""Of the best constant's loss: a range of outputs that comes so low confines nothing."""

VARIED = 1e-6
"""A feature whose standard deviation is below this share of its size is constant."""


@dataclass(frozen=True)
class Facts:
    """See above. `run` is the program's own training; None where it could not be run."""

    program: Program
    chain: Chain | None = None
    family: str = ""
    """The loss, by the names of `outputs.FAMILIES`."""
    kind: str = ""
    """The targets, see `outputs.target_kind`."""
    reach: Reach | None = None
    dropout: float = 0.0
    """The largest probability of any dropout."""
    num_outputs: int = 0
    input_size: float = math.nan
    """The largest root mean square of an input feature."""
    smallest_input: float = math.nan
    """The largest standard deviation of an input feature."""
    input_imbalance: float = math.nan
    """The largest over the median size of the features that vary."""
    input_offset: float = math.nan
    """The median over features of |mean| / standard deviation."""
    constant_inputs: bool = False
    """Whether no feature of the floating-point inputs varies between examples."""
    target_mean: float = math.nan
    target_std: float = math.nan
    target_low: float = math.nan
    target_high: float = math.nan
    transformer: Transformer | None = None
    """None where there is no attention."""
    padding: Padding | None = None
    """Of sequences; None where there is none."""
    order: Order | None = None
    """How targets are related to inputs, of a model of sequences whose targets are its inputs."""
    blind_to_order: str = ""
    """See `positions.blind_to_order`, of a model with attention."""
    mixing: float = 0.0
    """By how much of the outputs' spread an example's output changes with the others in its batch, without batch
    statistics, ..."""
    mixes_in: str = ""
    """... and the first module in which they meet; "" for the model itself."""
    terms: tuple[Term, ...] = ()
    """What the loss is the sum of; none where it is no sum."""
    schedule: tuple[float, ...] = ()
    """The rate of every step over that of the first, where the user has a schedule."""
    bare_sizes: tuple[tuple[str, float], ...] = ()
    """Root mean square of the parameters that are no layer's weight: tables, tokens, scales, embeddings."""
    weight_gains: tuple[tuple[str, float], ...] = ()
    """For every layer the root mean square of its weight times the square root of what goes into a unit: about 1 where
    sizes are kept."""
    equal_units: tuple[str, ...] = ()
    """Layers with several units, whose weights are all the same and not zero."""
    optimizer: str = ""
    """The class's name."""
    momentum: float = 0.0
    weight_decay: float = 0.0
    uphill: bool = False
    """Whether the optimizer maximizes."""
    eps: float = 0.0
    """What an adaptive optimizer adds to the root of its second moment."""
    left_out: tuple[str, ...] = ()
    """Trainable parameters that the optimizer does not hold, ..."""
    left_out_share: float = 0.0
    """... and their share of all trainable numbers."""
    foreign: int = 0
    """Of the optimizer's parameters, those that are not the model's; 0 where it was given and models are built anew,
    which it cannot hold."""
    batch_size: int = 0
    num_examples: int = 0
    run: Run | None = None
    first: FirstPass | None = None
    evidence: xr.Dataset | None = None
    """Of the first step; None where it could not be measured."""
    own: bool = True
    """Whether the rate and the number of steps are the user's own; else they were found."""

    @property
    def score(self) -> float:
        """Of the program's own run; -1 where there is none."""
        return -1.0 if self.run is None else self.run.score

    @property
    def last(self) -> str:
        """The activation behind the last layer."""
        return self.chain.last if self.chain else ""

    @property
    def full_batch(self) -> bool:
        """One batch of all data."""
        return len(self.program.batches) == 1


def facts_of(program: Program, *, seed: int = 0, instance: bool = False) -> Facts:
    """All but the run; what cannot be seen keeps its default.

    Args:
        instance: whether the model is its user's own instance, and none built for this.
    """
    model = program.build(seed)
    batches = program.batches[:LEVEL_BATCHES]
    terms = loss_terms(model, batches, program.loss_fn, seed=seed)
    program = judged_by_data(program, terms)
    padding = padding_of(model, batches, program.loss_fn, seed=seed)
    if padding is not None and padding.counted and not isinstance(program.loss_fn, Judged):
        program = replace(program, loss_fn=Unpadded(program.loss_fn, padding.target))
    ignored = IGNORED_LABEL if padding is None else padding.target
    mixed, mixes_in = mixing(model, batches, program.loss_fn, seed=seed)
    with WithoutDropout() as dropped:
        like = outputs_of(model, batches, program, seed)
    seen = chain(model, batches[0], program.loss_fn, seed=seed) if like else None
    found = Facts(program, seen, dropout=dropped.largest, padding=padding)
    targets = [t for batch in program.batches if (t := targets_of(batch)) is not None]
    if like:
        width = like[0].shape[-1] if like[0].ndim > 1 else 1
        kind = target_kind(targets, width)
        family = loss_family(model, batches[0], program.loss_fn, like[0], ignored)
        ask = model, batches, program.loss_fn, like, seen.last if seen else ""
        could = reach(*ask, ignored) or fitted_reach(*ask)
        found = replace(found, num_outputs=width, kind=kind, family=family, reach=could)
    if found.kind == "number":
        values = torch.cat([t.double().flatten() for t in targets])
        ends = float(values.min()), float(values.max())
        found = replace(found, target_mean=float(values.mean()), target_std=float(values.std(correction=0)))
        found = replace(found, target_low=ends[0], target_high=ends[1])
    if (statistics := feature_statistics(program.batches)) is not None:
        mean, std = statistics
        size = (mean.square() + std.square()).sqrt()
        varied = std > VARIED * size
        found = replace(found, constant_inputs=bool((std <= VARIED * size).all()))
        if bool(varied.any()):
            found = replace(
                found,
                input_size=float(size.max()),
                smallest_input=float(std.max()),
                input_imbalance=float(size.max() / size[varied].median()),
                input_offset=float((mean.abs() / std)[varied].median()),
            )
    given_to_a_build = not instance and getattr(program.optimizer, "given", None) is not None
    sizes = [n for batch in program.batches if (n := num_examples(batch)) is not None]
    attends = transformer(model, batches[0], program.loss_fn, seed=seed)
    return replace(
        found,
        transformer=attends,
        blind_to_order=blind_to_order(model, batches[0], program.loss_fn, seed=seed) if attends else "",
        order=order_of(model, batches, program.loss_fn, seed=seed),
        mixing=mixed,
        mixes_in=mixes_in,
        terms=terms,
        bare_sizes=tuple(bare_sizes(model)),
        weight_gains=tuple(weight_gains(model)),
        equal_units=tuple(equal_units(model)),
        batch_size=max(sizes, default=0),
        num_examples=sum(sizes),
        program=with_levels(program, found.reach),
        foreign=0 if given_to_a_build else foreign_parameters(program.optimizer, model, program.lr),
        **optimizer_facts(program, model),
    )


def judged_by_data(program: Program, terms: Sequence[Term]) -> Program:
    """The program whose runs are judged without a penalty on the parameters, where its loss holds one."""
    if not 0 < penalty_share(terms) < 1:
        return program
    kept = tuple(not term.penalty for term in terms)

    def chosen(_name: str, place: int) -> bool:
        return place >= len(kept) or kept[place]

    return replace(program, loss_fn=Split(program.loss_fn, chosen))


def with_levels(program: Program, could: Reach | None) -> Program:
    """The program with the losses that its runs are judged by."""
    if could is None:
        return program
    # A likelihood of probabilities falls without end for outputs that are none: then those of its range are the scale.
    beyond = could.lowest < 0 <= could.in_range <= NEARLY_NOTHING * could.constant
    lowest = could.in_range if beyond else could.lowest
    return replace(program, constant_loss=could.constant, lowest_loss=lowest)


def judged_anew(program: Program, *, seed: int = 0) -> Program:
    """The same for a program whose loss or targets were changed."""
    model, batches = program.build(seed), program.batches[:LEVEL_BATCHES]
    like = outputs_of(model, batches, program, seed)
    return with_levels(program, reach(model, batches, program.loss_fn, like, "") if like else None)


def outputs_of(model: nn.Module, batches: Sequence[Batch], program: Program, seed: int) -> list[Tensor]:
    """The outputs in training mode, one tensor a batch; empty where the loss does not call the model once, or its
    output is no tensor."""
    found: list[Tensor] = []
    with seeded(model, seed):
        model.register_forward_hook(
            lambda _m, _i, output: found.append(output.detach()) if isinstance(output, Tensor) else None
        )
        for place, batch in enumerate(batches, 1):
            try:
                (program.loss_fn or default_loss)(model, batch)
            except Exception:  # somebody's own code
                return []
            if len(found) != place or not found[-1].ndim or not found[-1].is_floating_point():
                return []
    return found


def weight_gains(model: nn.Module) -> list[tuple[str, float]]:
    """Root mean square of every layer's weight times the square root of its fan-in; embeddings are left out, and the
    tables (tokens, positions) of modules that contain layers: they multiply nothing."""
    gains = []
    for path, module in watched_modules(model).items():
        if any(owns_weight(part) for part in module.modules() if part is not module):
            continue
        weights = [p for p in own_parameters(module) if p.ndim >= 2 and p.is_floating_point()]
        if weights and not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            weight = weights[0].detach().double()
            gains.append((path, float(weight.square().mean().sqrt() * math.sqrt(weight[0].numel()))))
    return gains


def equal_units(model: nn.Module) -> list[str]:
    """See `Facts.equal_units`."""
    found = []
    for path, module in watched_modules(model).items():
        for p in own_parameters(module):
            if p.ndim >= 2 and len(p) > 1 and p.is_floating_point() and p.numel() > len(p):
                rows = p.detach().double().flatten(1)
                size = float(rows.abs().max())
                if size > 0 and float((rows - rows[0]).abs().max()) <= ALIKE * size:
                    found.append(path)
                break
    return found


def bare_sizes(model: nn.Module) -> list[tuple[str, float]]:
    """See `Facts.bare_sizes`."""
    found = []
    for path, module in model.named_modules():
        holds_layers = any(owns_weight(part) for part in module.modules() if part is not module)
        if holds_layers or isinstance(module, nn.Embedding | nn.EmbeddingBag):
            for name, p in module.named_parameters(path, recurse=False):
                if p.is_floating_point() and p.numel():
                    found.append((name, float(p.detach().double().square().mean().sqrt())))
    return found


def optimizer_facts(program: Program, model: nn.Module) -> dict[str, Any]:
    """What the optimizer is, as its own groups say it."""
    try:
        with untouched(model):
            made = make_optimizer(program.optimizer, model, program.lr)
    except NormscopeError:
        return {}
    held = {id(p) for each in made.param_groups for p in each["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    left_out = tuple(name for name, p in trainable.items() if id(p) not in held)
    total = sum(p.numel() for p in trainable.values())
    group = made.param_groups[0]
    betas = group.get("betas")
    momentum = group.get("momentum", betas[0] if betas else 0.0)
    return {
        "optimizer": type(made).__name__,
        "momentum": float(momentum or 0.0),
        "weight_decay": float(group.get("weight_decay", 0.0) or 0.0),
        "uphill": bool(group.get("maximize", False)),
        "eps": float(group.get("eps", 0.0) or 0.0),
        "left_out": left_out,
        "left_out_share": sum(trainable[name].numel() for name in left_out) / max(total, 1),
    }
