import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from neuroclips.errors import ArtefactError
from neuroclips.evaluation.table import (
    Score,
    format_interval,
    format_value,
    read_scores,
    rich_table,
    with_holm,
    write_scores,
    write_tables,
)

SCORE = Score(
    metric="top-1", method="ridge", value=0.25, ci_low=0.2, ci_high=0.3, chance=0.005, n=200, n_effective=41.5, seed=7,
    floors={"shuffled": 0.004, "mean": 0.005}, differences={"shuffled": (0.1, 0.3), "mean": (0.2, 0.29)}, ceiling=0.8,
    brain_attributable=0.31, brain_attributable_interval=(0.2, 0.4), space="tokens", unit="share",
)  # fmt: skip


def test_json_round_trip(tmp_path):
    control = Score(metric="top-1", method="shuffled", value=0.004, n=200, n_effective=41.5, seed=7, control=True)
    write_scores(tmp_path / "scores.json", [SCORE, control])
    assert read_scores(tmp_path / "scores.json") == [SCORE, control]


def test_nan_is_written_as_null(tmp_path):
    row = Score(metric="m", method="a", value=float("nan"), n=1, n_effective=1.0, seed=0, floors={"f": float("inf")})
    write_scores(tmp_path / "scores.json", [row])
    assert json.loads((tmp_path / "scores.json").read_text())[0]["value"] is None
    assert np.isnan(read_scores(tmp_path / "scores.json")[0].value)


@pytest.mark.parametrize("text", ["{", "{}", '[{"metric": "m"}]', '["x"]'])
def test_damaged_files_are_refused(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"scores\.json"):
        read_scores(tmp_path / "scores.json")


def test_intervals_read_well():
    assert format_interval((0.065, 0.15), "share") == "6.5 – 15.0 %"
    assert format_interval((-82.0, -63.1), "rank") == "-82.0 to -63.1"
    assert format_interval((-1.0, 2.5), "dB") == "-1.00 to 2.50 dB"
    assert format_interval(None) == "–"


def test_verdicts():
    assert SCORE.beats_floors
    assert SCORE.beats_chance
    rank = Score(metric="rank", method="a", value=9.0, ci_low=7.0, ci_high=12.0, chance=10.0, n=20, n_effective=5.0,
                 seed=0, differences={"f": (-8.0, -1.0)}, higher_is_better=False)  # fmt: skip
    assert rank.beats_floors
    assert not rank.beats_chance
    bare = Score(metric="m", method="a", value=1.0, n=1, n_effective=1.0, seed=0)
    assert bare.beats_floors is None
    assert bare.beats_chance is None


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.5, "share", "50.0 %"), (0.0, "share", "0.0 %"), (float("nan"), "", "–"), (12.345, "", "12.3"),
     (0.0123, "", "0.0123"), (4.0, "rank", "4.00"),
     (100.0, "rank", "100"), (21.0, "dB", "21.0 dB"), (1234.4, "", "1234")],
)  # fmt: skip
def test_numbers_read_well(value, unit, text):
    assert format_value(value, unit) == text


def test_holm_is_over_the_metrics_of_one_method_compared_with_one_thing():
    rows = [
        replace(SCORE, metric="a", method="m", n_repeats=5, p_values={"shuffled": 0.01, "ridge": 0.5}),
        replace(SCORE, metric="b", method="m", n_repeats=5, p_values={"shuffled": 0.04}),
        replace(SCORE, metric="a", method="other", n_repeats=5, p_values={"shuffled": 0.03}),
        replace(SCORE, metric="a", method="m", n_repeats=1, p_values={"shuffled": 0.03}),
    ]
    adjusted = [score.p_holm for score in with_holm(rows)]
    assert adjusted[0] == pytest.approx({"shuffled": 0.02, "ridge": 0.5})
    assert adjusted[1] == pytest.approx({"shuffled": 0.04})
    assert adjusted[2] == adjusted[3] == pytest.approx({"shuffled": 0.03})


def test_tables_are_written_for_programs_and_for_people(tmp_path):
    per_clip = pd.DataFrame({"clip": ["a", "b"], "value": [0.5, 1.0]})
    write_tables(tmp_path, [SCORE], per_clip)
    assert read_scores(tmp_path / "scores.json") == [SCORE]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "per_clip.parquet"), per_clip)
    assert SCORE.metric in (tmp_path / "scores.md").read_text()
    tex = (tmp_path / "scores.tex").read_text()
    body = [line for line in tex.splitlines() if line.endswith(r"\\")]
    assert len({line.count("&") - line.count(r"\&") for line in body}) == 1
    assert "%" not in tex.split("\n", 1)[1].replace(r"\%", "")  # an unescaped one would hide the rest of its line


def test_terminal_table_shows_what_the_score_stands_beside():
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(rich_table([SCORE, replace(SCORE, metric="error", unit="", higher_is_better=False)]))
    for text in (
        "25.0 %",
        "20.0 – 30.0 %",
        "0.50 %",
        "0.50 % mean",
        "80.0 %",
        "31.0 %",
        "200 clips",
        "41.5",
        "error ↓",
    ):
        assert text in capture.get()
    with console.capture() as capture:
        console.print(rich_table([replace(SCORE, chance=None, ceiling=None, brain_attributable=None)]))
    assert "ceiling" not in capture.get().split("Intervals")[0]  # columns that hold nothing are left out
