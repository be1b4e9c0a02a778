import base64
import hashlib
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import av
import numpy as np
import pandas as pd
import pytest

from neuroclips.errors import DataError
from neuroclips.evaluation.table import Score
from neuroclips.report.charts import Curve, Series, VoxelSummary
from neuroclips.report.data_card import DataCard
from neuroclips.report.film import encode_jpeg
from neuroclips.report.page import (
    Credit,
    Exhibit,
    ReportClip,
    ReportData,
    RunCard,
    ScoreName,
    Stage,
    Strip,
    percentile_clips,
    render_report,
    write_report,
)

EVIL = "</script><script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>{{ 7 * 7 }}"
N_CLIPS, N_FRAMES = 7, 5
VOID = {"meta", "input", "link", "img", "br"}


class Page(HTMLParser):
    """Tags, attributes, scripts and text of a page; fails on elements that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def decoded(picture):
    """Frames of a picture of the page, and the seconds that they last (None for a still)."""
    with av.open(io.BytesIO(base64.b64decode(picture["content"]))) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, float(stream.duration * stream.time_base) if picture["type"] == "video/mp4" else None


def score(**changes):
    row = {"metric": "top-1", "method": "ridge", "value": 0.25, "n": N_CLIPS, "n_effective": 3.5, "seed": 7,
           "ci_low": 0.2, "ci_high": 0.3, "chance": 0.005, "ceiling": 0.8, "space": "tokens", "unit": "share",
           "floors": {"shuffled": 0.004}, "differences": {"shuffled": (0.1, 0.3)}}  # fmt: skip
    return Score(**(row | changes))


def hostile_data(curve):
    split = {"name": EVIL, "segments": 2, "minutes": 1.0, "clips": 30, "repeats": EVIL, "used": 1, "left_out": 1,
             "scenes": 3, "effective_n": 2.5, "dots": [{"x": 5.0, "odd": True, "title": EVIL}]}  # fmt: skip
    run = {"split": EVIL, "segment": EVIL, "repeat": EVIL, "file": EVIL, "volumes": 35, "first_volume": 1,
           "agreement": 0.5, "x": 50.0, "motion": {"mean_fd_mm": 0.1, "max_fd_mm": 0.3}, "misfit": 0.1, "still": 2,
           "reason": "", "warnings": [1]}  # fmt: skip
    jpeg = base64.b64encode(encode_jpeg(np.zeros((3, 8, 40), np.uint8))).decode()
    area = {"name": EVIL, "areas": EVIL, "voxels": 9, "reliability": 0.2, "selected": 3}
    voxels = VoxelSummary(3, 9, np.array([0, 0.5, 1.0]), np.array([6, 3]), np.array([0, 3]))
    films = [{"name": EVIL, "segments": 2, "strips": [{"name": EVIL, "text": EVIL, "jpeg": jpeg}]}]
    return DataCard([EVIL], voxels, [curve], [split], (0.0, 1.0), films, [run, run | {"reason": EVIL}] * 20, [area],
                    EVIL, [EVIL], {EVIL: EVIL})  # fmt: skip


@pytest.fixture
def hostile():
    """A report with every part present and hostile text wherever text may come from outside."""
    rng = np.random.default_rng(0)
    ids = [f"test1/{2 * i:04d}s" for i in range(N_CLIPS - 1)] + [EVIL]
    clips = [
        ReportClip(clip, i // 2, {
            "shown": rng.integers(0, 256, size=(N_FRAMES, 3, 16, 24), dtype=np.uint8),
            "keyframe": rng.integers(0, 256, size=(3, 16, 24), dtype=np.uint8),
            EVIL: rng.integers(0, 256, size=(N_FRAMES + 1, 3, 16, 24), dtype=np.uint8),
        }, EVIL)
        for i, clip in enumerate(ids)
    ]  # fmt: skip
    clips[2] = replace(clips[2], pictures={"shown": clips[2].pictures["shown"]}, text="")
    strips = [Strip(EVIL, EVIL, clips[0].pictures, EVIL), Strip("long", "a to b", clips[1].pictures, seconds=6.0)]
    values = pd.DataFrame({"clip": ids, "scene": 0, "method": EVIL, "space": "tokens", "metric": "top-1"})
    curve = Curve(EVIL, EVIL, EVIL, [Series(EVIL, [1, 2], [0.1, 0.2], [0, 0.1], [0.2, 0.3])], {EVIL: 0.1}, EVIL)
    return ReportData(
        title=EVIL, what=EVIL, source=EVIL, notice=EVIL, scores=[score(method=EVIL, note=EVIL, floors={EVIL: 0.1})],
        per_clip=values.assign(value=np.r_[np.arange(N_CLIPS - 1) / 10, np.nan]), clips=clips,
        exhibits=[Exhibit("empty", "Nothing here", EVIL, []), Exhibit(EVIL, EVIL, EVIL, strips)],
        gallery=ScoreName("tokens", EVIL, "top-1"), repeats_curve=curve, training_curves=[curve],
        data_card=hostile_data(replace(curve, marks={EVIL: [1, 2]})),
        card=RunCard({"name": EVIL, EVIL: [1, EVIL]}, {EVIL: EVIL}, {EVIL: EVIL}, [Stage(EVIL, 1.5), Stage("b", 2, 9)]),
        credits=[Credit(EVIL, "https://licence.example/a\"b"), Credit("bad", "javascript:alert(1)")],
    )  # fmt: skip


def test_hostile_text_stays_text(hostile):
    page = Page(render_report(hostile))
    data, script = page.scripts
    assert EVIL in [clip["id"] for clip in json.loads(data)["clips"]]
    assert "{{ 7 * 7 }}" in page.words
    assert {a["src"][:23] for tag, a in page.tags if tag == "img"} == {"data:image/jpeg;base64,"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_the_page_needs_nothing_else(hostile):
    text = render_report(hostile)
    page = Page(text)
    links = {(t, n, v) for t, a in page.tags for n, v in a.items() if n in {"src", "href", "srcset", "action"}}
    inside = {("a", "href", "#warning-1")} | {link for link in links if link[2].startswith("data:image/jpeg;base64,")}
    assert len(inside) == 2
    assert links - inside == {("a", "href", 'https://licence.example/a"b')}
    assert any(a.get("id") == "warning-1" for _, a in page.tags)
    assert not any(tag in {"link", "iframe", "object", "embed"} for tag, _ in page.tags)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_every_clip_is_on_the_page_and_its_videos_decode(hostile):
    content = json.loads(Page(render_report(hostile)).scripts[0])
    assert [clip["id"] for clip in content["clips"]] == [clip.id for clip in hostile.clips]
    assert [clip["text"] for clip in content["clips"]] == [EVIL, EVIL, "", *[EVIL] * (N_CLIPS - 3)]
    for clip, source in zip(content["clips"], hostile.clips):
        assert [picture["name"] for picture in clip["pictures"]] == list(source.pictures)  # in the caller's order
        for picture in clip["pictures"]:
            wanted = source.pictures[picture["name"]]
            frames, seconds = decoded(picture)
            assert len(frames) == (1 if wanted.ndim == 3 else len(wanted))
            assert seconds == (None if wanted.ndim == 3 else pytest.approx(2.0))
    assert [clip["values"] for clip in content["clips"]] == [[0.0], [0.1], [0.2], [0.3], [0.4], [0.5], [None]]


def test_exhibits_stand_before_the_browser_and_last_as_long_as_they_say(hostile):
    text = render_report(hostile)
    page = Page(text)
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections[:4] == ["gallery", "empty", EVIL, "browser"]
    rows = [a for _, a in page.tags if a.get("class") == "videos"]
    assert [row["data-clip"] for row in rows[:5]] == [
        clip["id"] for clip in percentile_clips(hostile.per_clip, hostile.gallery)
    ]
    content = json.loads(page.scripts[0])["exhibits"]
    strips = [content[int(row["data-exhibit"])][int(row["data-strip"])] for row in rows[5:]]
    assert [strip["id"] for strip in strips] == [EVIL, "a to b"]
    assert [strip["text"] for strip in strips] == [EVIL, ""]
    lasting = [[decoded(p)[1] for p in strip["pictures"] if p["type"] == "video/mp4"] for strip in strips]
    assert lasting == [[pytest.approx(2.0)] * 2, [pytest.approx(6.0)] * 2]


def test_a_gallery_of_some_clips_says_of_how_many(hostile):
    assert f"Five of {N_CLIPS} test clips, drawn by rule" in Page(render_report(hostile)).words
    some = replace(hostile, per_clip=hostile.per_clip.iloc[:4])
    page = Page(render_report(some))
    assert f"Of {N_CLIPS} test clips, 4 have a video by “{EVIL}”. Five of these, drawn by rule" in page.words
    assert {a["data-clip"] for _, a in page.tags if "data-clip" in a} == {clip.id for clip in hostile.clips[:4]}


def test_pictures_in_the_page_and_nowhere_else_may_be_shown(hostile):
    page = Page(render_report(hostile))
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    sources = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert sources["default-src"] == "'none'"
    assert sources["img-src"] == sources["media-src"] == "data:"


def test_the_headline_says_how_good_beside_floor_chance_and_ceiling():
    words = Page(render_report(ReportData("t", "7 clips", "fMRI", [score()]))).words
    assert "We decoded 7 clips from fMRI." in words
    assert "“ridge” found the right clip at its first choice for 25.0 % of 7 clips (95 % interval 20.0" in words
    assert "Chance is 0.50 %; the floor “shuffled” reaches 0.40 %; the ceiling is 80.0 %." in words
    assert "better than every floor" in words


def test_a_score_that_does_not_beat_a_floor_says_so():
    weak = score(floors={"shuffled": 0.1, "mean": 0.24}, differences={"shuffled": (0.1, 0.2), "mean": (-0.1, 0.1)})
    words = Page(render_report(ReportData("t", "clips", "fMRI", [weak]))).words
    assert "It is not clearly better than “mean”: read it as no evidence of decoding." in words
    assert "better than every floor" not in words


def test_parts_that_are_missing_leave_no_trace():
    page = Page(render_report(ReportData("t", "clips", "fMRI", [])))
    assert not any(tag == "section" for tag, _ in page.tags)
    assert "None" not in page.words


def test_the_headline_can_be_chosen_but_must_exist():
    scores = [score(control=True, method="control"), score(), score(metric="PSNR", value=12.0, unit="dB")]
    assert "“ridge” found" in Page(render_report(ReportData("t", "a", "b", scores))).words
    chosen = ReportData("t", "a", "b", scores, headline=ScoreName("tokens", "ridge", "PSNR"))
    assert "reached a PSNR of 12.0 dB" in Page(render_report(chosen)).words
    with pytest.raises(DataError, match="not among the scores"):
        render_report(replace(chosen, headline=ScoreName("video", "ridge", "PSNR")))


def test_gallery_clips_are_drawn_by_rule():
    values = pd.DataFrame({
        "clip": list("abcdefghi"), "scene": 0, "method": "m", "space": "s", "metric": "x",
        "value": [5, 1, 9, 2, 8, 3, 7, 4, 6.0],
    })  # fmt: skip
    name = ScoreName("s", "m", "x")
    assert [c["value"] for c in percentile_clips(values, name)] == [9, 7, 5, 3, 1]
    assert [c["value"] for c in percentile_clips(values, name, higher_is_better=False)] == [1, 3, 5, 7, 9]
    with pytest.raises(DataError, match="cannot rank clips"):
        percentile_clips(values, ScoreName("s", "m", "y"))


def test_one_id_for_two_clips_is_refused(hostile):
    with pytest.raises(DataError, match="one id a clip"):
        render_report(replace(hostile, clips=[hostile.clips[0], hostile.clips[0]]))


def test_the_page_is_written_whole_or_not_at_all(tmp_path, hostile):
    path = tmp_path / "report.html"
    write_report(path, hostile)
    before = path.read_text(encoding="utf-8")
    assert before == render_report(hostile)
    with pytest.raises(DataError):
        write_report(path, replace(hostile, headline=ScoreName("a", "b", "c")))
    assert path.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [path]
