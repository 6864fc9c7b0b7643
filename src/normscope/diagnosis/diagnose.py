"""What is wrong with this model? Evidence first, then what it means: `diagnose(model, batches, optimizer="sgd")`.

Three stages. Before anything is measured, every batch is passed through once (`first_pass`). Then the model and its
first step are looked at (`evidence`), and the program as a whole: its layers, output, loss and data (`facts`). Then it
is trained, as its user does where rate and steps are given, and trained again with suspected faults mended
(`experiments`): a fault is said where it is certain, or where its repair is needed.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
import xarray as xr
from torch import nn

from normscope.descent.optimizers import OptimizerFactory, optimizer_factory
from normscope.descent.recipe import Recipe, loss_in_precision
from normscope.diagnosis.evidence import is_very_large, measure_evidence, trial_rates, with_descents
from normscope.diagnosis.experiments import LEARNED, PARTLY, Needed, Search, best_of_rates, search
from normscope.diagnosis.facts import Facts, facts_of
from normscope.diagnosis.fault import GAIN, Fault, Suspicion, faults, suspicions
from normscope.diagnosis.faults.labels import by_heart
from normscope.diagnosis.finding import Finding, findings_dataset
from normscope.diagnosis.first_pass import FirstPass, first_pass
from normscope.diagnosis.notebook import DiagnosisTree
from normscope.diagnosis.program import Program, Run, tried
from normscope.diagnosis.rules import curvature, symptoms
from normscope.diagnosis.words import NOT_LEARNING
from normscope.errors import InvalidBatch, NormscopeError
from normscope.model.batch import Batch, on_device
from normscope.model.build import ModelOrBuild, eager
from normscope.model.contract import instrument
from normscope.model.loss import LossFn, checked_loss, readable_errors
from normscope.model.mini_batches import Batches
from normscope.model.state import untouched
from normscope.rates.starting_point import Starts
from normscope.results import labelled
from normscope.statistics.numbers import percent

NUM_BATCHES = 40
"""Different mini-batches looked at, most of them in the short descents."""

MOST_BATCHES = 1000
"""Different mini-batches that the user's own training is run on."""

TRIAL_STEPS = 40
"""Length of the short descents."""

SECONDS = 10.0
"""Of one processor, for all trainings together, where nothing else is asked for."""

MOST_PLACES = 5
"""Of batches that are named by their places."""

LONGER = "epochs"
"""The repair after which it is asked whether what is learned holds on other batches."""

LAYER = re.compile(r"\b([Ll]ayer|module) ([\w.#]+)")
"""A layer's name in a sentence."""

SYMPTOM = "zero_gradient"
"""What is told after its causes."""


@dataclass
class Diagnosis:
    """All that a diagnosis came to."""

    findings: list[Finding]
    first: FirstPass
    facts: Facts | None = None
    search: Search = field(default_factory=Search)
    evidence: xr.DataTree | None = None
    skipped: list[str] = field(default_factory=list)
    """What could not be measured, a line each."""


@instrument
def diagnose(
    model_or_build: ModelOrBuild,
    batches: Batches,
    *,
    optimizer: str | OptimizerFactory = "momentum",
    loss_fn: LossFn | None = None,
    steps: int | None = None,
    seed: int = 0,
    lr: float | None = None,
    seconds: float = SECONDS,
) -> xr.DataTree:
    """What is wrong with a model or its training, and what mends it, with the evidence; the rates themselves are
    `stable_lr`'s to find.

    Every batch is passed through once; one step of the optimizer is walked along to where it diverges, and gradients
    are looked at layer by layer; then the program is trained, and trained again with suspected faults mended. The model
    comes back untouched.

    Args:
        model_or_build, batches, optimizer, loss_fn: as for `stable_lr`. One batch, of all data, will do.
        steps: number of mini-batches that you train on; 40 if None.
        seed: of the build, of the order of batches and of dropout.
        lr: the rate that you train at. It is judged too: too large, too small, too few steps. If None, rates are tried,
            and nothing is said of them.
        seconds: of one processor, that all trainings together may take; what does not fit is left unsaid.

    Returns:
        Tree of `findings` (see `finding.findings_dataset`), the first one first to be mended; `batches`, what the first
        pass over each gave; `training`, the losses of the program as it is and mended; and, where they could be
        measured, `evidence` and `output_gradients` (see `evidence.measure_evidence`). The attribute `skipped` says what
        could not be.

    Raises:
        InvalidModel, InvalidBatch: nothing at all can be measured; see `stable_lr`.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10))
        >>> _ = model[1].requires_grad_(False)
        >>> batches = lambda seed: ns.batches(ns.load_data("digits"), 32, seed=seed)
        >>> tree = ns.diagnose(model, batches, seconds=1.0)
        >>> str(tree["findings"]["finding"].values[0])
        'frozen'
    """
    recipe = Recipe(optimizer_factory(optimizer), steps or TRIAL_STEPS, loss_fn)
    kept = min(max(recipe.steps, NUM_BATCHES), MOST_BATCHES)
    starts = Starts(eager(model_or_build), batches, kept, loss_fn=loss_fn, fine_tuning=None)
    return diagnosis(starts, recipe, seed=seed, lr=lr, own=lr is not None, seconds=seconds)


def diagnosis(
    starts: Starts,
    recipe: Recipe,
    *,
    seed: int = 0,
    lr: float | None = None,
    own: bool = False,
    seconds: float = SECONDS,
    first: FirstPass | None = None,
    schedule: tuple[float, ...] = (),
) -> xr.DataTree:
    """`diagnose`, from where the tries of a search start.

    Args:
        lr: a rate known to be good, or with `own` the rate that its user trains at.
        first: what the first pass showed, where it was made; batches that cannot be trained on are then gone already.
        schedule: see `Facts.schedule`.
    """
    limit = MOST_BATCHES if own else NUM_BATCHES
    model = starts.model(seed)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    taken = [on_device(batch, device) for batch in islice(starts.one_round(None), limit)]
    with untouched(model):
        found = diagnosed(
            model,
            taken,
            recipe,
            seed=seed,
            lr=lr,
            own=own,
            seconds=seconds,
            first=first,
            instance=starts.from_instance,
            schedule=schedule,
        )
        found.findings = [with_types(finding, model) for finding in found.findings]
    return as_tree(found)


def diagnosed(
    model: nn.Module,
    batches: Sequence[Batch],
    recipe: Recipe,
    *,
    seed: int = 0,
    lr: float | None = None,
    own: bool = False,
    seconds: float = SECONDS,
    first: FirstPass | None = None,
    instance: bool = False,
    schedule: tuple[float, ...] = (),
) -> Diagnosis:
    """`diagnose` of a model on batches that are there.

    Args:
        instance: whether it is its user's own model, and none built for this.
    """
    until = time.process_time() + seconds * torch.get_num_threads()
    device = str(next((p.device for p in model.parameters()), torch.device("cpu")))
    measured = replace(recipe, loss_fn=loss_in_precision(recipe, device))
    if first is None:
        first = first_pass(model, batches, measured.loss_fn, seed=seed)
        refuse_hopeless(model, batches[0], first, recipe)
        usable = [batches[i] for i in first.usable]
    else:
        usable = list(batches) if first.usable else []
    trained_so = {name: getattr(recipe, name) for name in ("loss_fn", "warmup", "clip_norm", "precision", "state")}
    program = Program(lambda _seed: model, batches, recipe.optimizer, lr or 0.0, recipe.steps, **trained_so)
    found = Diagnosis([], first)
    if left_out := words_of_left_out(first):
        found.skipped.append(left_out)
    if not usable or (first.hopeless and first.garbage):
        found.skipped.append(f"Nothing else was measured: {first.hopeless}.")
        facts = Facts(program, first=first, schedule=schedule)
        found.findings = told_early(facts, suspicions(facts))
        return found
    try:
        found.evidence = measure_evidence(model, usable[:NUM_BATCHES], recipe=measured, seed=seed, lr=lr)
        if is_very_large(model):
            found.skipped.append("The sharpest curvature was not measured: it takes more memory than the training.")
    except NormscopeError as error:
        found.skipped.append(f"The first step was not looked at: {error}")
    facts = facts_of(replace(program, batches=usable), seed=seed, instance=instance)
    facts = replace(facts, first=first, own=own, schedule=schedule)
    if found.evidence is not None:
        facts = replace(facts, evidence=found.evidence["evidence"].to_dataset())
    found.facts = facts = trained(facts, found.evidence, lr, seed, until)
    suspected = suspicions(facts)
    found.findings = told_early(facts, suspected)
    found.search = search(facts, suspected, seed=seed, until=until)
    found.findings = conclude(found, model, usable, measured, seed, lr, until)
    if found.search.cut:
        found.skipped.append("There was no time for every repair: what is not said was not looked at.")
    return found


def words_of_left_out(first: FirstPass) -> str:
    """Which batches nothing else is measured on, where there are others; else empty."""
    places = first.left_out
    if not places or not first.usable:
        return ""
    shown = ", ".join(map(str, places[:MOST_PLACES])) + (", ..." if len(places) > MOST_PLACES else "")
    many = f"batch {shown}" if len(places) == 1 else f"{len(places)} batches ({shown}; from 0)"
    return f"Everything else was measured without {many} of {len(first.losses)}."


def refuse_hopeless(model: nn.Module, batch: Batch, first: FirstPass, recipe: Recipe) -> None:
    """Raise what `checked_loss` says of the first batch where no batch can be measured at all."""
    if not first.hopeless:
        return
    with untouched(model), readable_errors(), torch.enable_grad():
        checked_loss(model, batch, recipe.loss_fn)
    if len(first.refused) == len(first.losses):
        raise InvalidBatch(f"no batch can be measured: {next(iter(first.refused.values()), 'nothing depends on it')}")


def told_early(facts: Facts, suspected: Sequence[tuple[Fault, Suspicion]]) -> list[Finding]:
    """What the first pass shows."""
    found = []
    for fault, suspicion in suspected:
        if fault.early:
            advice, code = fault.advice(facts, suspicion) if fault.advice else ("", "")
            if fault.repairs is not None and not code:
                repair = next(fault.repairs(facts.program, facts), None)
                advice, code = (f"Do it with {repair.done}.", repair.code) if repair else ("", "")
            parts = suspicion.title, suspicion.sentence, advice
            found.append(Finding(fault.name, *parts, True, suspicion.numbers, fault.category, suspicion.place, code))
    return found


def trained(facts: Facts, evidence: xr.DataTree | None, lr: float | None, seed: int, until: float) -> Facts:
    """The facts with the program's own run: at the rate given, or at the best of several."""
    if facts.own:
        return replace(facts, run=tried(facts.program, seed=seed, until=until, both_modes=True))
    rates = [lr] if lr is not None else []
    if evidence is not None and lr is None:
        rates = trial_rates(evidence["evidence"].to_dataset(), lr)
    best: tuple[Program, Run] | None = None
    scores: dict[float, float] = {}
    for rate in rates or [0.01]:
        # Beyond a rate that is worse than the best one there is no better.
        if best is not None and any(min(rate, best[0].lr) < r < max(rate, best[0].lr) for r in scores):
            continue
        program = replace(facts.program, lr=rate)
        run = tried(program, seed=seed, until=until, hopeless=True, both_modes=True)
        if run is not None:
            scores[rate] = run.score
        if run is not None and (best is None or run.score > best[1].score):
            best = program, run
        if best is not None and best[1].score >= LEARNED:
            break
    return facts if best is None else replace(facts, program=best[0], run=best[1])


def conclude(
    found: Diagnosis,
    model: nn.Module,
    batches: Sequence[Batch],
    recipe: Recipe,
    seed: int,
    lr: float | None,
    until: float | None = None,
) -> list[Finding]:
    """The findings in their order: what the first pass shows, what is certain, what is needed, what the evidence alone
    shows of a program that does not learn, and what limits every network where there is nothing else."""
    facts = found.facts
    assert facts is not None
    needed = [as_finding(one, found.search, facts) for one in found.search.needed]
    longer = any(one.step.fault.name == LONGER for one in found.search.needed)
    if longer and found.search.program is not None and all(one.step.fault.tuning for one in found.search.needed):
        heart = by_heart(found.search.program, found.search.score, seed=seed, until=until)
        needed = needed if heart is None else [heart]
    told = {finding.name for finding in needed}
    early = [finding for finding in found.findings if finding.name not in told]
    of = {fault.name: fault for fault in faults()}
    # That no gradient arrives is what a fault does: behind those whose repair is known.
    faulty = sorted([*early, *needed], key=lambda finding: finding.name == SYMPTOM)
    if found.evidence is None:
        return faulty
    evidence = found.evidence["evidence"].to_dataset()
    learning = facts.own and facts.score >= NOT_LEARNING
    shown = [detailed(finding, facts) for finding in symptoms(evidence) if finding.name not in told]
    shown = [one for one in shown if not learning or (of[one.name].grave and facts.score < LEARNED)]
    faulty += [finding for one in shown if (finding := proved(one, found, seed, until)) is not None]
    # What nothing but the numbers of a training would mend comes behind what is broken.
    graves = [finding for finding in faulty if of[finding.name].grave]
    faulty.sort(key=lambda finding: of[finding.name].tuning and bool(graves))
    # Nothing is accused of being unlearnable before every repair was tried.
    if not faulty and not learning and not found.search.cut and found.search.best < PARTLY and len(batches) > 1:
        known = None if facts.own else lr  # nothing says that its user's own rate is a good one
        evidence = with_descents(
            evidence, model, batches[:NUM_BATCHES], recipe=recipe, seed=seed, lr=known, until=until
        )
        if not int(evidence["trial_steps"]):
            found.skipped.append("There was no time to see whether what is learned holds on other batches.")
        found.evidence["evidence"] = xr.DataTree(evidence)
        faulty += symptoms(evidence, last=True)
    return faulty if any(f.name == "exploding" for f in faulty) else [*faulty, curvature(evidence)]


def detailed(finding: Finding, facts: Facts) -> Finding:
    """A symptom with what the program's facts say of its cause."""
    fault = next(fault for fault in faults() if fault.name == finding.name and fault.rule is not None)
    return fault.detail(finding, facts) if fault.detail else finding


def proved(finding: Finding, found: Diagnosis, seed: int, until: float | None) -> Finding | None:
    """A symptom with what its repair gains; None where it does no harm, or its repair is not needed or not tried."""
    fault = next(fault for fault in faults() if fault.name == finding.name and fault.rule is not None)
    facts = found.facts
    assert facts is not None
    if fault.harmless and facts.score >= LEARNED:
        return None
    if fault.repairs is None or fault.suspected is not None:
        return finding
    try:
        repair = next(fault.repairs(facts.program, facts), None)
    except NormscopeError:
        return None
    if repair is None or (until is not None and time.process_time() > until):
        found.skipped.append(f"There was no time to see whether it matters that {finding.title}.")
        return None
    run = best_of_rates(repair.program, facts.own, seed=seed, until=until)
    if run is None or not run.score >= max(facts.score, 0.0) + GAIN:
        return None
    gained = (
        f" With {repair.done}, {run.steps} steps learn {percent(run.score)} of what there is to learn, in place of "
        f"{percent(max(facts.score, 0.0))}."
    )
    numbers = {**finding.numbers, "score": facts.score, "score_mended": run.score}
    return replace(finding, sentence=finding.sentence + gained, code=repair.code, numbers=numbers)


def as_finding(one: Needed, search_: Search, facts: Facts) -> Finding:
    """A repair that is needed, in words: what was measured, what it gains, and what else has to be done."""
    fault: Fault = one.step.fault
    suspicion, others = one.step.suspicion, [n for n in search_.needed if n is not one]
    others = [n for n in others if n.repair.code != one.repair.code]
    gained, score = "", search_.score
    numbers = {**suspicion.numbers, "score": facts.score, "score_mended": score, "score_without": one.without}
    own = facts.program.steps
    steps = search_.program.steps if search_.program else own
    longer = f" (your own are {own})" if steps != own else ""
    if score > max(facts.score, 0.0) + 0.05:
        together = f" and {', '.join(n.repair.done for n in others)}" if others else ""
        gained = (
            f" With {one.repair.done}{together}, {steps} steps{longer} learn {percent(score)} of what there is to "
            f"learn, in place of {percent(max(facts.score, 0.0))}."
        )
    elif score < facts.score - 0.05:
        gained = f" That is not all: with it, {steps} steps{longer} learn {percent(max(score, 0.0))}."
    advice = f"Train with {one.repair.done}."
    if others:
        advice += f" That alone does not suffice: also {', '.join(n.repair.done for n in others)}."
    code = "\n".join([one.repair.code, *(f"# and also\n{n.repair.code}" for n in others)])
    numbers = {name: value for name, value in numbers.items() if not math.isnan(value)}
    place = one.repair.place or suspicion.place
    return Finding(
        fault.name, suspicion.title, suspicion.sentence + gained, advice, True, numbers, fault.category, place, code
    )


def with_types(finding: Finding, model: nn.Module) -> Finding:
    """The finding with the type of every layer behind its name, where it is mentioned first."""
    types = {path: type(module).__name__ for path, module in model.named_modules() if path}

    def told(text: str) -> str:
        seen: set[str] = set()

        def typed(match: re.Match[str]) -> str:
            path = match[2].rstrip(".")
            if path in seen or path.split("#")[0] not in types:
                return match[0]
            seen.add(path)
            kind = "" if path.startswith("layer") else f"{match[1]} "
            return f"{kind}{path} ({types[path.split('#')[0]]}){match[2][len(path) :]}"

        return LAYER.sub(typed, text)

    return replace(finding, sentence=told(finding.sentence), advice=told(finding.advice))


def as_tree(found: Diagnosis) -> xr.DataTree:
    """A diagnosis as labelled arrays."""
    first, nodes = found.first, {"findings": findings_dataset(found.findings)}
    place = (list(range(len(first.losses))), "batch", "1")
    nodes["batches"] = labelled(
        {
            "loss": ("batch", list(first.losses), "loss before any step", "1"),
            "gradient_norm": ("batch", list(first.gradients), "norm of the gradient", "1"),
            "examples": ("batch", list(first.examples), "examples", "1"),
        },
        {"batch": place},
    )
    runs = [
        ("as it is", found.facts.run if found.facts else None),
        ("mended", found.search.run if found.search.needed else None),
    ]
    for name, run in runs:
        if run is not None and len(run.losses):
            nodes[f"training/{name.replace(' ', '_')}"] = labelled(
                {
                    "loss": ("step", run.losses, "loss before the step", "1"),
                    "score": ((), run.score, "share of what there is to learn", "1"),
                    "diverged": ((), run.diverged, "whether it diverged", "1"),
                    "constant_loss": ((), run.constant_loss, "loss of the best constant output", "1"),
                },
                {"step": (list(range(len(run.losses))), "step", "1")},
            )
    if found.evidence is not None:
        for name in ("evidence", "output_gradients"):
            nodes[name] = found.evidence[name].to_dataset()
    told = {"skipped": "\n".join(found.skipped), "left_out": words_of_left_out(first)}
    nodes["findings"] = nodes["findings"].assign_attrs(told)
    tree = DiagnosisTree.from_dict(nodes)
    tree.attrs["skipped"] = told["skipped"]
    return tree
