import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from neuroclips.cli import app
from neuroclips.errors import ArtefactError, DataError
from neuroclips.evaluation.across import across_runs, table_of
from neuroclips.evaluation.table import Score, write_scores

VALUES = (0.2, 0.25, 0.31, 0.22)


def score(value, metric="top-1", **more):
    given = {
        "space": "tokens", "method": "neural", "n": 200, "n_effective": 48.5, "seed": 7, "unit": "share",
        "chance": 0.01, "floors": {"shuffled": 0.02, "mean frame": 0.015},
        "differences": {"shuffled": (value - 0.22, 0.3)}, "ceiling": 0.9, "n_repeats": 5,
    } | more  # fmt: skip
    return Score(metric=metric, value=value, **given)


@pytest.fixture
def tables():
    return [[score(v), score(v / 2, "pairwise"), score(0.02, method="neural, shuffled", control=True, ci_low=0.0,
             ci_high=0.03)] for v in VALUES]  # fmt: skip


def test_mean_and_interval_agree_with_scipy(tables):
    found = across_runs(tables)
    assert [(a.rows[0].metric, a.rows[0].method) for a in found] == [
        ("top-1", "neural"), ("pairwise", "neural"), ("top-1", "neural, shuffled"),
    ]  # fmt: skip
    first = found[0]
    assert first.value == pytest.approx(np.mean(VALUES))
    assert first.interval == pytest.approx(stats.t.interval(0.95, 3, np.mean(VALUES), stats.sem(VALUES)))
    assert first.count("beats_floors") == "2 of 4"  # 0.25 and 0.31
    assert found[2].count("contains_chance") == "4 of 4"
    assert first.mean_beside("mean frame") == pytest.approx(0.015)
    assert first.mean("brain_attributable") is None


def test_one_run_has_no_interval_and_other_orders_still_meet(tables):
    assert across_runs(tables[:1])[0].interval is None
    again = across_runs([tables[0], tables[1][::-1]])
    assert [s.value for s in again[1].rows] == [VALUES[0] / 2, VALUES[1] / 2]


def test_runs_without_a_common_score_are_refused(tables):
    with pytest.raises(DataError, match="no score in common"):
        across_runs([tables[0], [score(0.1, "SSIM")]])
    with pytest.raises(DataError, match="no runs"):
        across_runs([])


def test_table_for_reading_and_for_papers(tables):
    text = table_of(across_runs(tables))
    row = next(line for line in text.splitlines() if line.startswith("| tokens | top-1 | neural |"))
    assert "| 24.5 % |" in row
    assert "| 20.0, 25.0, 31.0, 22.0 |" in row
    assert "2.0 % shuffled" in row
    tex = table_of(across_runs(tables), latex=True)
    assert r"24.5 \%" in tex
    assert len({line.count("&") for line in tex.splitlines() if "&" in line}) == 1


def test_command_reads_runs_and_says_when_they_are_few(tables, tmp_path):
    for name, table in zip("abcd", tables):
        write_scores(tmp_path / name / "scores.json", table)
    runs = [str(tmp_path / name) for name in "abcd"]
    found = CliRunner().invoke(app, ["table", *runs, "--metric", "top-1"])
    assert found.exit_code == 0
    assert found.stdout.count("\n") == 4
    assert "4 of the 5 runs" in found.stderr
    with pytest.raises(DataError, match="no score of that"):
        CliRunner().invoke(app, ["table", *runs, "--metric", "beauty"], catch_exceptions=False)
    with pytest.raises(ArtefactError, match=r"nowhere/scores\.json"):
        CliRunner().invoke(app, ["table", str(tmp_path / "nowhere")], catch_exceptions=False)
