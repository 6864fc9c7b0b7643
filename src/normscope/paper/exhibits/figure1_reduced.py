"""Figure 1 at a reduced size, trained to the end: claims (a) to (f) of `paper.reduced`, judged on its runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.descent.outcome import Outcome
from normscope.figures.style import COLORS, NAMES, figure_of, legend_once
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.reduced import (
    ARMS,
    DIES_AT,
    GATE,
    GATE_SHARE,
    LARGE,
    LARGE_GAINS,
    LEARNS_AT,
    PROTOCOL,
    SAME,
    SHARE_AT_SMALL,
    SHARE_OF_FINAL,
    SMALL,
    Arm,
    configs,
)
from normscope.results import labelled
from normscope.statistics.claim import Claim, Scope
from normscope.statistics.numbers import percent
from normscope.statistics.verdict import AT_REDUCED_SIZE
from normscope.sweeps.record import RunRecord, read_record
from normscope.sweeps.store import Store, config_of

MISSING, NOT_PLANNED = "not finished", "not planned"
"""Outcomes of places without a run."""

CHANCE = 10.0
"""Per cent of the test images that a constant answer gets right: what a run that diverged counts as."""

SCALE = "reduced"

TITLES = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "resnet110": "ResNet-110"}


def measure(setting: Setting, arms: Sequence[Arm] = ARMS) -> xr.Dataset:
    """Train the runs of these arms that the setting's folder does not hold (none, if the setting trains none), and
    gather those that are finished over `arm`, `seed` and `epoch`."""
    if setting.trains:
        setting.train(list(configs(arms)))
    store = Store(setting.folder_of_runs())
    runs = [read_record(store.result_path(config)) for config in configs(arms) if store.has(config)]
    dataset = gathered(runs, arms)
    provenance = setting.provenance(runs=len(runs), planned=sum(arm.seeds for arm in arms))
    return dataset.assign_attrs(labelled({}, {}, **provenance, scale=SCALE, protocol_of_runs=PROTOCOL).attrs)


def gathered(runs: list[RunRecord], arms: Sequence[Arm] = ARMS) -> xr.Dataset:
    """Finished runs over the protocol's arms: accuracies at the end in per cent and the test accuracy on the way; the
    sharpness where the loss of the training images first was at most 0.05 and 0.01. NaN where there is no run."""
    names, seeds = [arm.name for arm in arms], range(max(arm.seeds for arm in arms))
    epochs, levels = PROTOCOL["epochs"], PROTOCOL["sharpness_at"]
    shape = (len(arms), len(seeds))
    ends = {name: np.full(shape, np.nan) for name in ("test_accuracy", "held_out_accuracy", "clean_train_accuracy")}
    on_the_way = np.full((*shape, epochs), np.nan)
    sharp = {name: np.full((*shape, len(levels)), np.nan) for name in ("sharpness", "weight_norm", "clean_train_loss")}
    planned = np.array([[seed < arm.seeds for seed in seeds] for arm in arms])
    outcomes = np.where(planned, MISSING, NOT_PLANNED).astype(object)
    trained = np.zeros(shape, dtype=np.int64)
    for run in runs:
        config = config_of(run)
        place = names.index(Arm(config.net, config.norm, config.lr, 0, init=config.init).name), config.seed
        outcomes[place], trained[place] = run.attrs["outcome"], int((run.values["steps"] > 0).sum())
        for name, of in ends.items():
            known = run.values[name][np.isfinite(run.values[name])]
            of[place] = 100 * known[-1] if len(known) else np.nan
        on_the_way[(*place, slice(run.epochs))] = 100 * run.values["test_accuracy"]
        measured = np.flatnonzero(np.isfinite(run.values.get("sharpness", np.full(epochs, np.nan))))
        for level, epoch in zip(range(len(levels)), measured, strict=False):
            for name, of in sharp.items():
                of[(*place, level)] = run.values[name][epoch]
    dims = ("arm", "seed")
    titles = {"test_accuracy": "test", "held_out_accuracy": "held-out", "clean_train_accuracy": "training images'"}
    return labelled(
        {
            **{name: (dims, of, f"{titles[name]} accuracy at the end", "%") for name, of in ends.items()},
            "test_accuracy_of_epoch": ((*dims, "epoch"), on_the_way.astype(np.float32), "test accuracy", "%"),
            **{
                f"{name}_at_loss": ((*dims, "loss"), of, f"{name.replace('_', ' ')} when trained so far", "1")
                for name, of in sharp.items()
            },
            "outcome": (dims, outcomes.astype(str), "outcome", "1"),
            "epochs": (dims, trained, "epochs trained", "1"),
        },
        {
            "arm": (names, "network, normalization and learning rate", "1"),
            "seed": (list(seeds), "seed", "1"),
            "epoch": (np.arange(1, epochs + 1), "epoch", "1"),
            "loss": (list(levels), "loss of the training images at most", "nat"),
        },
    )


def finished(dataset: xr.Dataset) -> xr.DataArray:
    """Which runs are there, over `arm` and `seed`."""
    return ~dataset["outcome"].isin([MISSING, NOT_PLANNED])


def planned(dataset: xr.Dataset) -> xr.DataArray:
    """Which runs the protocol has, over `arm` and `seed`."""
    return dataset["outcome"] != NOT_PLANNED


def at_gate(dataset: xr.Dataset) -> xr.DataArray:
    """Which finished runs have enough of the training images right, over `arm` and `seed`."""
    return dataset["clean_train_accuracy"] >= GATE


def passes(dataset: xr.Dataset, arm: str) -> bool:
    """Whether at least 80 % of an arm's finished seeds are at the gate, all of which are judged then."""
    of = finished(dataset).sel(arm=arm).values
    return bool(of.any()) and float(at_gate(dataset).sel(arm=arm).values[of].mean()) >= GATE_SHARE


def end(dataset: xr.Dataset, net: str, norm: str, lr: float) -> np.ndarray:
    """Test accuracies at the end in per cent, one a planned seed: NaN where not finished, and for all seeds of an arm
    that does not pass the gate; that of guessing where one diverged."""
    arm = f"{net} {norm}@{lr:g}"
    of = dataset.sel(arm=arm).isel(seed=planned(dataset).sel(arm=arm).values)
    if not passes(dataset, arm):
        return np.full(of.sizes["seed"], np.nan)
    return of["test_accuracy"].where(of["outcome"] != Outcome.DIVERGED.value, CHANCE).values


def best_lr(dataset: xr.Dataset, net: str, norm: str) -> float:
    """The counted rate past the gate whose finished runs have the highest held-out accuracy; NaN where none is."""
    rates = [arm.lr for arm in ARMS if (arm.net, arm.norm, arm.counted) == (net, norm, True)]
    held_out = dataset["held_out_accuracy"]
    means = {lr: held_out.sel(arm=f"{net} {norm}@{lr:g}") for lr in rates if passes(dataset, f"{net} {norm}@{lr:g}")}
    return max(means, key=lambda lr: float(means[lr].mean()), default=math.nan)


def _same_rate(dataset: xr.Dataset, net: str) -> np.ndarray:
    """None less BN at the small rate, in points."""
    return end(dataset, net, "none", SMALL[net]) - end(dataset, net, "batch", SMALL[net])


def _large_gains(dataset: xr.Dataset, net: str) -> np.ndarray:
    """BN at the large rate less BN at the small one, in points."""
    return end(dataset, net, "batch", LARGE) - end(dataset, net, "batch", SMALL[net])


def _best_gains(dataset: xr.Dataset, net: str) -> np.ndarray:
    """BN at its best rate less none at its best, in points."""
    rates = {norm: best_lr(dataset, net, norm) for norm in ("batch", "none")}
    if any(map(math.isnan, rates.values())):
        return np.full(next(arm.seeds for arm in ARMS if arm.net == net), np.nan)
    return end(dataset, net, "batch", rates["batch"]) - end(dataset, net, "none", rates["none"])


def _share_of_gain(dataset: xr.Dataset, norm: str, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """In ResNet-56, what another network gains over none at the small rate, and what BN at the large rate does."""
    net = "resnet56"
    none = end(dataset, net, "none", SMALL[net])
    return end(dataset, net, norm, lr) - none, end(dataset, net, "batch", LARGE) - none


def _only_with_bn(dataset: xr.Dataset) -> np.ndarray:
    """Whether, seed by seed, BN learns at 0.1 and none does not at 0.03; NaN where either is not finished."""
    arms = [f"resnet56 batch@{LEARNS_AT:g}", f"resnet56 none@{DIES_AT:g}"]
    used = planned(dataset).sel(arm=arms).all("arm").values
    learns = (dataset["outcome"].sel(arm=arms) == Outcome.LEARNS.value).values[:, used]
    there = finished(dataset).sel(arm=arms).all("arm").values[used]
    return np.where(there, learns[0] & ~learns[1], np.nan)


def said_of(arms: Callable[[xr.Dataset], Mapping[str, None]] | list[str], dataset: xr.Dataset) -> str:
    """For a claim's note: how many of the runs it needs are finished, and at the gate."""
    parts = []
    for arm in arms if isinstance(arms, list) else arms(dataset):
        wanted, there = planned(dataset).sel(arm=arm), finished(dataset).sel(arm=arm)
        fit = int((at_gate(dataset).sel(arm=arm) & there).sum())
        parts.append(f"{arm}: {int(there.sum())} of {int(wanted.sum())} runs finished, {fit} at the gate")
    return "; ".join(parts)


def _claim(statement: str, value: Callable[[xr.Dataset], object], arms: list[str], **more: object) -> Claim:
    options: dict = {
        "where": "Figure 1",
        "kind": AT_REDUCED_SIZE,
        "no_value": "not finished, or of an arm that misses the gate",
        "awaits": True,
        "detail": partial(said_of, arms),
        **more,
    }
    return Claim(statement=statement, value=value, **options)


def _claims_on_rates(net: str) -> list[Claim]:
    """(a), (b) and (c) of one network."""
    small, title = f"{SMALL[net]:g}", TITLES[net]
    at_small = [f"{net} batch@{small}", f"{net} none@{small}"]
    claims = [
        _claim(
            f"(a) {title}, both trained to the end at the same small rate, {small}: without BN as good as with it, "
            f"within {SAME:g} points",
            partial(_same_rate, net=net),
            at_small,
            equals=0,
            margin=SAME,
            unit=" points",
            paper="+0.6",
            note="none less BN, test accuracy, paired by seed",
        ),
        _claim(
            f"(a) {title}, one-sided: there, BN is not better by {SAME:g} points",
            lambda dataset: -_same_rate(dataset, net),
            at_small,
            below=SAME,
            unit=" points",
            paper="-0.6",
        ),
    ]
    if net in LARGE_GAINS:
        claims.append(
            _claim(
                f"(b) {title}: BN at {LARGE:g} ends at least {LARGE_GAINS[net]:g} points above BN at {small}",
                partial(_large_gains, net=net),
                [f"{net} batch@{LARGE:g}", f"{net} batch@{small}"],
                above=LARGE_GAINS[net],
                unit=" points",
                paper="+11.9",
            )
        )
    counted = [arm.name for arm in ARMS if arm.net == net and arm.counted and arm.norm in ("batch", "none")]
    claims.append(
        _claim(
            f"(c) {title}: BN at its best rate ends above none at its best",
            partial(_best_gains, net=net),
            counted,
            above=0,
            unit=" points",
            paper="+11.3",
            note="rates chosen on held-out images, among the counted ones past the gate",
        )
    )
    return claims


def begun(net: str) -> Scope:
    """Stores in which at least one run of this network is finished."""
    return Scope(
        f"{TITLES[net]}, once a run of it is finished",
        lambda dataset: bool(finished(dataset).sel(arm=[arm.name for arm in ARMS if arm.net == net]).any()),
    )


_SMALL_56 = f"{SMALL['resnet56']:g}"
_GAIN_56 = [f"resnet56 batch@{LARGE:g}", f"resnet56 none@{_SMALL_56}"]

CLAIMS = [
    *(claim for net in SMALL for claim in _claims_on_rates(net)),
    _claim(
        f"(d) ResNet-56: of what BN at {LARGE:g} gains over none at {_SMALL_56}, at most a third is there at the same "
        "small rate",
        partial(_share_of_gain, norm="batch", lr=SMALL["resnet56"]),
        [*_GAIN_56, f"resnet56 batch@{_SMALL_56}"],
        of="share",
        below=SHARE_AT_SMALL,
        paper="about -0.05",
    ),
    _claim(
        f"(e) ResNet-56: in more than half of the networks BN learns at {LEARNS_AT:g} and none does not at {DIES_AT:g}",
        _only_with_bn,
        [f"resnet56 batch@{LEARNS_AT:g}", f"resnet56 none@{DIES_AT:g}"],
        of="proportion",
        above=0.5,
        paper="diverges",
        no_value="not finished",
    ),
    _claim(
        "(f) ResNet-56: batch norm before the last layer alone, at 0.03, recovers at least a third of that gain",
        partial(_share_of_gain, norm="final", lr=0.03),
        [*_GAIN_56, "resnet56 final@0.03"],
        of="share",
        above=SHARE_OF_FINAL,
        paper="about 0.67",
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """How much is finished, and what every arm with a finished run came to."""
    there = finished(dataset)
    said = []
    for arm in dataset["arm"].values.tolist():
        of = dataset.sel(arm=arm)
        done = there.sel(arm=arm).values
        if done.any():
            ends = of["test_accuracy"].values[done]
            kinds, counts = np.unique(of["outcome"].values[done], return_counts=True)
            words = ", ".join(f"{count} {kind}" for kind, count in zip(kinds, counts, strict=True))
            gate = percent(float(at_gate(dataset).sel(arm=arm).values[done].mean()))
            said.append(
                f"{arm}: {np.nanmean(ends):.1f} % (of {int(done.sum())} of {int(planned(dataset).sel(arm=arm).sum())} "
                f"runs, {words}; {gate} at the gate)"
            )
    return (
        f"{int(there.sum())} of {int(planned(dataset).sum())} runs finished. Test accuracy at the end: "
        f"{'; '.join(said) or 'none yet'}. CIFAR-10 averaged to 16 × 16 pixels, 4,000 images to train on, 100 epochs, "
        "no augmentation: far from the paper's 93 per cent, and every network is trained to the end."
    )


def draw(dataset: xr.Dataset) -> Figure:
    """One panel a network: test accuracy at the end, one point a finished seed, hollow where it misses the gate."""
    nets = [net for net in TITLES if begun(net).holds(dataset)] or list(TITLES)[:1]
    figure, axes = figure_of(1, len(nets), panel=(4.4, 3.4), sharey=True)
    for ax, net in zip(axes.flat, nets, strict=True):
        arms = [arm for arm in ARMS if arm.net == net]
        for place, arm in enumerate(arms):
            of, name = dataset.sel(arm=arm.name), arm.name
            done, gate = finished(dataset).sel(arm=name).values, at_gate(dataset).sel(arm=name).values
            for shown, face in ((done & gate, COLORS[arm.norm]), (done & ~gate, "none")):
                values = of["test_accuracy"].values[shown]
                ax.plot([place] * len(values), values, "o", mfc=face, color=COLORS[arm.norm], label=NAMES[arm.norm])
        ax.set_xticks(range(len(arms)), [f"{arm.lr:g}" + ("" if arm.counted else "*") for arm in arms])
        ax.set(
            title=TITLES[net], xlabel="learning rate (*: described only)", ylim=(0, None), xlim=(-0.5, len(arms) - 0.5)
        )
    axes.flat[0].set_ylabel("test accuracy at the end [%]")
    legend_once(axes.flat[0], title="hollow: misses the gate", fontsize="x-small")
    return figure


EXHIBIT = Exhibit(
    name="figure1_reduced",
    title="What normalization buys, trained to the end at a reduced size",
    where="Figure 1, at reduced size",
    place=1.1,
    paper_saw=(
        "At the same small learning rate the networks with and without batch norm end at the same test accuracy; what "
        "batch norm brings is the large rate. Arms, gate and thresholds here were fixed before any run that counts."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
    scales=(SCALE,),
    complete=lambda dataset: bool((finished(dataset) == planned(dataset)).all()),
)
