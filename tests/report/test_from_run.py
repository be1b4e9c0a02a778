"""The page of a run says what the run's files say."""

import html
import json
import re

import pytest

from neuroclips.data.prepared import load_clips
from neuroclips.evaluation.table import format_value, read_scores
from neuroclips.scoring import PRIMARY


@pytest.fixture
def page(tiny_run):
    return (tiny_run.directory / "report.html").read_text()


def visible_text(page):
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_every_test_clip_is_on_the_page(tiny_run, page):
    ids = load_clips(tiny_run.directory / "prepare").test.ids
    assert len(ids) == 20
    assert [clip for clip in ids if clip not in page] == []


def test_the_headline_is_the_score_with_most_repeats(tiny_run, page):
    scores = read_scores(tiny_run.directory / "scores.json")
    name = ("tokens", "neural", "top-1")
    rows = {s.n_repeats: s for s in scores if (s.space, s.method, s.metric) == name}
    assert set(rows) == {1, 2}
    row, text = rows[2], visible_text(page)
    assert f"first choice for {format_value(row.value, row.unit)} of {row.n} clips" in text
    assert f"chance is {format_value(row.chance, row.unit)}" in text.lower()
    assert f"“shuffled” reaches {format_value(row.floors['shuffled'], row.unit)}" in text
    assert f"ceiling is {format_value(row.ceiling, row.unit)}" in text


def test_the_table_holds_the_values_of_the_scores_file(tiny_run, page):
    text = visible_text(page)
    rows = [row for row in json.loads((tiny_run.directory / "scores.json").read_text()) if row["n_repeats"] == 2]
    assert {row["space"] for row in rows} == {"tokens", "latents", "video"}
    missing = [row for row in rows if format_value(row["value"], row["unit"]) not in text]
    assert missing == []


def test_the_page_says_that_the_subject_is_simulated_and_whose_pictures_it_shows(page):
    text = visible_text(page)
    assert "The subject is simulated" in text
    assert "OpenMoji" in text


def test_the_page_stands_alone(page):
    assert "default-src 'none'" in page
    assert not re.search(r"<(link|iframe|object|embed|base)\b", page)
    assert not re.search(r"""(?:src|poster|srcset)\s*=\s*["']?\s*(?:https?:|//|/|\.)""", page)
    assert not re.search(r"""url\(\s*["']?\s*(?!data:)[\w/.]""", page)
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(", page)


def test_the_card_says_what_the_controls_and_the_voxels_allow(tiny_run, page):
    summary, text = tiny_run.cards["evaluate"]["summary"], visible_text(page)
    controls = [s for s in read_scores(tiny_run.directory / "scores.json") if s.control and s.metric in PRIMARY]
    inside = sum(s.contains_chance is True for s in controls)
    assert f"{inside} of {len(controls)} intervals of identification contain chance" in text
    assert f"variance of one presentation {summary['noise_ceiling']['explainable_variance']:.2f}" in text
