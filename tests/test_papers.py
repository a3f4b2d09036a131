"""The page of the papers' claims: verdicts follow from the results that are kept."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def papers(monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import papers

    return papers


def test_verdicts_follow_from_the_intervals(papers):
    above, below, across = (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.1, -0.1, 0.3)
    assert papers.rises(above) == papers.rises(above, above) == papers.falls(below) == papers.AGREES
    assert papers.rises(below) == papers.falls(above, above) == papers.CONTRADICTS
    for verdict in (papers.rises(across), papers.rises(above, below), papers.falls(across, below)):
        assert verdict.startswith(papers.OPEN)
    assert papers.no_worse(above, across) == papers.AGREES and papers.no_worse(below, below) == papers.CONTRADICTS
    assert papers.no_worse(below, above).startswith(papers.OPEN)


def test_the_interval_of_few_differences_is_student_s(papers):
    mean, low, high = papers.paired([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(mean - low) == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def test_what_makes_tuning_necessary(papers):
    below, across = [-0.2, -0.3, -0.1], [0.0, -0.1, 0.1]
    both = lambda interval: {"style left": interval, "texture left": interval}
    assert papers.necessary(both(below), both(across)) == papers.AGREES
    assert papers.necessary(both(across), both(across)) == papers.OPEN
    assert papers.necessary(both(across), both(below)).startswith(papers.CONTRADICTS)
    assert papers.necessary(both(below), both(below)).endswith("tuning adds to it")


def test_verdicts_are_counted_by_kind(papers):
    assert [papers.kind(verdict) for verdict in (
        papers.AGREES, f"{papers.CONTRADICTS}: why", papers.UNTESTED, f"{papers.OPEN}: an interval includes 0",
        f"{papers.AGREES} for the latent, {papers.CONTRADICTS} for the rounded latent", f"{papers.AGREES}; bits: {papers.UNTESTED}"
    )] == ["agrees", "does not agree", "open", "open", "in part", "in part"]


def test_every_claim_of_the_page_has_a_run_and_every_command_exists(papers):
    claims = [claim for made in papers.SECTIONS.values() for claim in made()]
    assert len(claims) >= 25 and all(claim.says and claim.ran and claim.verdict for claim in claims)
    named = {name for claim in claims for name in re.findall(r"benchmarks/\w+\.py", claim.ran)}
    assert len(named) >= 8 and all((ROOT / name).is_file() for name in named)
    for claim in claims:
        assert claim.result or papers.UNTESTED in claim.verdict, claim.says


def test_other_results_have_other_verdicts(papers, monkeypatch):
    """The page is no copy of what was found once."""
    kept = papers.kept

    def reversed_files(name: str) -> dict:
        result = copy.deepcopy(kept(name))
        if name == "files":
            for of_set in result["sets"].values():
                of_set["files_minus_lpips decoded"] = {"difference": -0.2, "interval": [-0.3, -0.1]}
        return result

    before = papers.cpips_claims()[0]
    monkeypatch.setattr(papers, "kept", reversed_files)
    after = papers.cpips_claims()[0]
    assert before.verdict == papers.AGREES and after.verdict == papers.CONTRADICTS and "-0.200 [-0.300, -0.100]" in after.result


def test_a_row_that_was_not_trained_is_not_tested(papers, monkeypatch):
    kept = papers.kept

    def without(name: str) -> dict:
        result = copy.deepcopy(kept(name))
        if name == "semantic_ensemble":
            result["rows"] = {row: found for row, found in result["rows"].items() if row == "shipped"}
        return result

    monkeypatch.setattr(papers, "kept", without)
    assert {claim.verdict for claim in papers.ensemble_claims()} == {papers.UNTESTED} and papers.illm_claims() == []


def test_no_number_of_a_paper_stands_there_that_was_not_seen(papers):
    """Of the claims themselves: percentages of abstracts, or computed from published files."""
    claims = " ".join(claim.says for made in papers.SECTIONS.values() for claim in made())
    assert set(re.findall(r"-?\d[\d.]*(?: to \d+)? %", claims)) <= {"62 %", "30 to 40 %", "-1.6 %", "-15.2 %"}
