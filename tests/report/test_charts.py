import math

import numpy as np
import pytest

from neuroclips.errors import DataError
from neuroclips.evaluation.table import Score
from neuroclips.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    WIDTH,
    Curve,
    Series,
    VoxelSummary,
    dot_panels,
    histogram,
    line_chart,
    nice_ticks,
)


@pytest.mark.parametrize(("low", "high"), [(0, 0.43), (-3.2, 17), (5, 5), (1e-4, 2e-4), (0, 12000)])
def test_ticks_cover_the_range_in_even_round_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


def test_line_chart_places_points_between_the_axes():
    series = Series("a", [0, 1, 4], [0.0, math.nan, 1.0], [0.0, 0.1, 0.8], [0.2, 0.3, 1.0])
    chart = line_chart(Curve("t", "x", "y", [series], {"chance": 0.5}))
    assert chart["lines"][0]["dots"] == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, 12)]  # the missing point leaves a gap
    assert len(chart["lines"][0]["band"].split()) == 6
    assert [text for _, text in chart["x_ticks"]] == ["0", "1", "4"]
    assert chart["levels"][0]["y"] == pytest.approx((12 + HEIGHT - BOTTOM) / 2)


def test_marks_stand_at_their_x_and_widen_the_axis():
    chart = line_chart(Curve("t", "x", "y", [Series("a", [0, 1, 2], [0.0, 0.5, 1.0])], marks={"used": [1, 4]}))
    (mark,) = chart["marks"]
    assert mark == {"name": "used", "xs": [chart["lines"][0]["dots"][1][0], WIDTH - RIGHT]}
    assert [text for _, text in chart["x_ticks"]] == ["0", "1", "2", "4"]


def test_an_empty_curve_still_draws_its_axes():
    assert line_chart(Curve("t", "x", "y", [Series("a", [], [])]))["lines"][0]["points"] == ""


def test_unequal_lengths_are_refused():
    with pytest.raises(DataError, match="differ in length"):
        line_chart(Curve("t", "x", "y", [Series("a", [1, 2], [1])]))
    with pytest.raises(DataError, match=r"N \+ 1"):
        histogram(VoxelSummary(1, 2, np.linspace(0, 1, 3), np.array([1, 2, 3]), np.array([0, 0, 1])))


def test_histogram_heights_are_square_roots():
    bars = histogram(VoxelSummary(5, 125, np.array([0, 0.5, 1.0]), np.array([100, 25]), np.array([0, 4])))
    assert bars["all"][1]["height"] == pytest.approx(bars["all"][0]["height"] / 2)
    assert bars["selected"][0]["height"] == 0
    assert bars["selected"][1]["height"] == pytest.approx(bars["all"][0]["height"] / 5, abs=0.1)


def test_dots_of_a_panel_share_one_scale():
    def row(method, value, **more):
        return Score(metric="top-1", method=method, value=value, n=9, n_effective=3.0, seed=0, unit="share", **more)

    panel, other = dot_panels([
        row("a", 0.5, ci_low=0.25, ci_high=0.75, chance=0.0, ceiling=1.0, floors={"f": 0.0}),
        row("b", 0.75),
        Score(metric="PSNR", method="a", value=12.0, n=9, n_effective=3.0, seed=0, unit="dB"),
    ])  # fmt: skip
    first, second = panel["rows"]
    assert first["value"]["x"] == 50
    assert first["interval"] == [25, 75]
    assert first["ceiling"]["x"] == 100
    assert first["floors"][0]["x"] == first["chance"]["x"] == 0
    assert second["value"]["x"] == 75
    assert second["interval"] is None
    assert other["metric"] == "PSNR"
