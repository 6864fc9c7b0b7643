"""Claims as data: listed without measuring; replicas of the paper's own numbers pass, and every one can fail."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from normscope.paper.exhibit import exhibits
from normscope.paper.published import PUBLISHED
from normscope.statistics.claim import Claim
from normscope.statistics.judgement import judge
from normscope.statistics.score import counted, multiplicity_line, score, score_line
from normscope.statistics.verdict import (
    AT_REDUCED_SIZE,
    CONTROL,
    KINDS,
    NOT_REPRODUCED,
    REPRODUCED,
    THE_PAPERS,
    Verdict,
)

ROOT = Path(__file__).parents[1]

ALL = [(exhibit.name, claim) for exhibit in exhibits().values() for claim in exhibit.claims]


def test_every_claim_has_its_threshold_before_anything_is_measured() -> None:
    assert len(ALL) > 100
    assert all(claim.kind in KINDS and claim.requirement and claim.statement for _, claim in ALL)
    statements = [(name, claim.statement) for name, claim in ALL]
    assert len(set(statements)) == len(statements)


def test_what_the_set_up_was_fitted_to_is_marked() -> None:
    """Figure 5 with BN, layer 110 and figure 3's mini-batch 1."""
    marked = {(name, claim.statement.split(",")[0]) for name, claim in ALL if claim.in_sample}
    assert {name for name, _ in marked} == {"figure3", "figure5"}
    assert all("With BN" in words or "Without BN" in words for _, words in marked) and len(marked) >= 3
    first = [claim for name, claim in ALL if name == "figure3" and "mini-batch 1" in claim.statement]
    assert [claim.in_sample for claim in first if claim.of == "band" or "With BN" in claim.statement] == [True, True]


BANDS = [claim for _, claim in ALL if claim.of == "band"]


def of_values(claim: Claim, values: np.ndarray) -> Verdict:
    """The claim's verdict on these values in place of what it takes from a result."""
    return Claim(**{**vars(claim), "value": lambda _: values}).judged(xr.Dataset())


@pytest.mark.parametrize("claim", BANDS, ids=lambda claim: claim.statement[:60])
def test_a_true_replica_of_the_papers_numbers_is_not_refuted_and_another_truth_is(claim: Claim) -> None:
    """The paper and its replicas are draws of one truth: 400 times the paper's numbers scattered by 0.08 (of their size
    on a linear scale) and 12 seeds. Independent points lie in the band at once in 95 of 100 cases; ± 4 is 3.7 sigma."""
    random = np.random.default_rng(0)
    published = np.asarray(claim.published, dtype=float)

    def drawn(shape: tuple[int, ...], center: np.ndarray) -> np.ndarray:
        noise = 0.08 * random.normal(size=shape)
        return center * np.exp(noise) if claim.scale == "log" else center + noise

    verdicts = []
    for _ in range(400):
        paper = Claim(**{**vars(claim), "published": drawn(published.shape, published).tolist()})
        verdicts.append(of_values(paper, drawn((12, *published.shape), published)).verdict)
    assert verdicts.count(NOT_REPRODUCED) / 400 <= 0.09
    assert verdicts.count(REPRODUCED) / 400 >= 0.91
    elsewhere = published * 1e3 if claim.scale == "log" else published + 3
    assert of_values(claim, drawn((12, *published.shape), elsewhere)).verdict == NOT_REPRODUCED


MEANS = {
    "relative loss stays under 10": 10 ** PUBLISHED["figure3"]["batch"]["1"]["at_0.2_log10"],
    "log std rises by at least 1.5 nat": 4.37,
    "the std without BN is at least 4 times": 8.0,
    "one class holds at least 95 %": 99.5,
    "(a/b)/√n is at least 0.25 in the places": 0.45,
    "a/b is at most 5 at those layers": 2.6,
    "a/b with BN is at least 5 times": 19.5,
    "spread at least 30 times wider": 100.0,
    "the largest singular value is the theory's": None,
}
"""The paper's own numbers, by a part of the claim's statement."""


@pytest.mark.parametrize("words", list(MEANS))
def test_a_true_replica_of_a_claim_on_a_mean_is_never_refuted(words: str) -> None:
    """Sixteen seeds that scatter by a tenth around the paper's own value."""
    claims = [claim for _, claim in ALL if words in claim.statement]
    assert claims
    for claim in claims:
        center = MEANS[words] if MEANS[words] is not None else float(claim.paper)
        scatter = 0.02 if claim.equals is not None or center > 90 else 0.1
        random = np.random.default_rng(0)
        draws = [center * (1 + scatter * random.normal(size=16)) for _ in range(50)]
        assert {of_values(claim, one).verdict for one in draws} == {REPRODUCED} or center > 90
        assert NOT_REPRODUCED not in {of_values(claim, one).verdict for one in draws}
        wrong = 1e3 if claim.below is not None or claim.equals is not None else 1e-3
        assert of_values(claim, wrong * (1 + 0.01 * random.normal(size=16))).verdict == NOT_REPRODUCED


def verdict(kind: str, value: float, *, in_sample: bool = False) -> Verdict:
    values = [value - 0.1, value, value + 0.1]
    return judge("it grows", "Figure 1", values, above=0, kind=kind, in_sample=in_sample)


def test_kinds_are_counted_apart_and_weighed() -> None:
    verdicts = [
        verdict(THE_PAPERS, 5),
        verdict(THE_PAPERS, -5),
        verdict(THE_PAPERS, 0.05),
        verdict(AT_REDUCED_SIZE, 5),
        verdict(THE_PAPERS, 5, in_sample=True),
        verdict(CONTROL, 5),
    ]
    assert score(verdicts) == pytest.approx((1.5 / 3.5, 2.5 / 3.5))
    assert "43 of 100 (71 were all" in score_line(verdicts)
    rows = {row[0]: row[1:] for row in counted(verdicts)[1:]}
    assert rows[THE_PAPERS] == ("1", "1", "1") and rows[CONTROL] == ("1", "0", "0")
    assert "Of 6 claims that are tests, 4 are reproduced, and 4 of those stand" in multiplicity_line(verdicts)
    assert score_line([verdict(CONTROL, 5)]) == "" and multiplicity_line([]) == ""


@pytest.mark.parametrize("page", ["README.md", "docs/claims.md", "docs/apart.md"])
def test_tables_in_the_docs_are_those_of_the_committed_results(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    filled = runpy.run_path(str(ROOT / "docs" / "claim_tables.py"))["filled"]
    assert filled(text, ROOT) == text, f"run python docs/claim_tables.py {page}"
    assert "<!-- end -->" in text
