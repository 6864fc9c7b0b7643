"""Whole answers of a diagnosis, of worlds that are made up: no sentence contradicts another, nor what was measured."""

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diagnose import measured, some
from torch import nn

from normscope.descent.optimizers import optimizer_factory
from normscope.descent.recipe import Recipe
from normscope.diagnosis import diagnose as stages
from normscope.diagnosis.diagnose import Diagnosis, as_tree, conclude, with_types
from normscope.diagnosis.experiments import MORE, PARTLY, Needed, Search, Step, is_needed
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Repair, Suspicion, faults
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.first_pass import FirstPass
from normscope.diagnosis.program import Program, Run
from normscope.diagnosis.words import findings_text

FAULTS = {fault.name: fault for fault in faults()}
REPAIRS = ["learning_rate", "epochs", "optimizer", "inputs", "initialization", "summed", "post_norm", "output_range"]
SCORES = st.sampled_from([-1.0, 0.0, 0.04, 0.3, 0.55, 0.9]) | st.floats(-1, 1)
TRIALS = [  # labels, stuck, neither
    {"one_batch": 0.1, "contrast": 0.0, "contrast_p": 0.5, "contrast_detectable": 0.1, "control": 0.6},
    {"one_batch": 0.9, "contrast": 0.0, "contrast_p": 0.5, "contrast_detectable": 0.1, "control": 0.6},
    {"one_batch": 0.1, "contrast": 0.4, "contrast_p": 0.05, "contrast_detectable": 0.1, "control": 0.6},
]


def a_run(score: float, diverged: bool, steps: int = 40) -> Run:
    """One that ends where the score says, between a constant's loss of 1 and 0."""
    losses = np.concatenate([[1.0], np.full(steps - 1, 1 - score)])
    return Run(losses, 1.0, 0.0, diverged, steps=steps)


@st.composite
def worlds(draw: Any) -> tuple[Diagnosis, dict[str, float]]:
    """A diagnosis before its conclusion, made as the search makes it, and what the short descents would find."""
    model = nn.Linear(2, 2)
    program = Program(lambda _seed: model, [None] * 8, optimizer_factory("sgd"), 0.1, 40)
    diverged = draw(st.booleans())
    facts = Facts(program, own=draw(st.booleans()), run=a_run(-1.0 if diverged else draw(SCORES), diverged))
    longer = draw(st.booleans())
    mended = draw(SCORES)
    repair = Repair(replace(program, steps=400 if longer else 40), "line", "a repair")
    needed = [
        Needed(Step(FAULTS[name], Suspicion(f"{name} is wrong", "It was.", {}, certain)), repair, without)
        for name, certain, without in draw(
            st.lists(st.tuples(st.sampled_from(REPAIRS), st.booleans(), SCORES), max_size=3, unique_by=lambda x: x[0])
        )
    ]
    kept = [one for one in needed if one.step.suspicion.certain or is_needed(one, mended)]
    best = max([facts.score, mended if needed else -1.0, *(one.without for one in needed)])
    search = Search(tuple(kept), repair.program, a_run(mended, False), best, (), draw(st.booleans()))
    evidence = measured(silent_share=some(draw(st.sampled_from([0.0, 0.0, 1.0])), 4))
    evidence["silent_share_later"] = evidence["silent_share"]
    early = [Finding("mask", "a mask", "It leaks.", "Hide.", category="architecture")] if draw(st.booleans()) else []
    first = FirstPass((1.0,) * 8, (1.0,) * 8, (4,) * 8)
    tree = xr.DataTree.from_dict({"evidence": evidence, "output_gradients": xr.Dataset()})
    return Diagnosis(early, first, facts, search, tree), draw(st.sampled_from(TRIALS))


@given(worlds())
@settings(max_examples=100, deadline=None)
def test_no_answer_contradicts_itself_or_what_was_measured(world: tuple[Diagnosis, dict[str, float]]) -> None:
    found, trial = world
    facts, search = found.facts, found.search
    assert facts is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "by_heart", lambda *_a, **_k: None)
        patch.setattr(stages, "with_descents", lambda evidence, *_a, **_k: evidence.assign(**trial, trial_steps=40))
        recipe = Recipe(facts.program.optimizer, 40)
        found.findings = conclude(found, nn.Linear(2, 2), facts.program.batches, recipe, 0, None)
    told = [finding for finding in found.findings if finding.fault]
    names = [finding.name for finding in told]
    text = " ".join(findings_text(as_tree(found)).split())

    assert len(set(names)) == len(names)
    assert not re.search(r"\b(nan|inf)\b", text)
    assert text.startswith("No fault was found") is not told
    if {"labels", "stuck"} & set(names):  # nothing that was tried learns, and nothing is said to
        assert len(names) == 1 and search.best < PARTLY and not search.cut and "in place of" not in text
    if text.startswith("No fault was found."):
        assert facts.run is not None and not facts.run.diverged and facts.score >= 0.2
    for finding in told:
        mended = finding.numbers.get("score_mended", math.nan)
        if gained := re.search(r"learn (\d+) % of what there is to learn, in place of (\d+) %", finding.sentence):
            assert int(gained[1]) >= int(gained[2]) and mended > facts.score
        if mended < facts.score - 0.05:  # advice that its own numbers refute says so
            assert "That is not all" in finding.sentence
        steps = search.program.steps if search.program else 40
        assert steps == 40 or "steps learn" not in finding.sentence, "other than its own"
        if FAULTS[finding.name].tuning and "score_without" in finding.numbers and finding.name not in ("mask",):
            certain = next(one.step.suspicion.certain for one in search.needed if one.step.fault.name == finding.name)
            assert certain or mended >= MORE * finding.numbers["score_without"]


def test_a_layer_is_told_with_its_type_where_it_is_mentioned_first() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.layer9 = nn.Conv2d(1, 1, 1)
    finding = Finding("dead", "t", "40 % of layer 0 are dead: layer 0. Past layer layer9#2, layer 7.", "See layer 1.")
    told = with_types(finding, model)
    assert told.sentence == ("40 % of layer 0 (Linear) are dead: layer 0. Past layer9#2 (Conv2d), layer 7.")
    assert told.advice == "See layer 1 (ReLU)."
