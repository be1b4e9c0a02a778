import numpy as np
import pytest

from neuroclips.cortex.importance import patterns, permutation_importance
from neuroclips.cortex.regions import HIGHER, LOWER, Region, Regions, volume_regions
from neuroclips.cortex.results import MapResults
from neuroclips.cortex.summary import RegionValues, area_rows, claim, of_clips
from neuroclips.cortex.voxel_map import VoxelMap
from neuroclips.decoders import FirstLayer
from neuroclips.evaluation.intervals import SceneBootstrap
from neuroclips.evaluation.significance import paired_p_value


@pytest.fixture
def boot():
    return SceneBootstrap(np.array([0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7]), draws=300, seed=4)


def two_regions(*names):
    found = tuple(Region(name, "claim", "both", n) for name, n in zip(names, (3, 2)))
    return Regions(found, np.array([0, 0, 0, 1, 1]), np.eye(2, dtype=bool))


def test_means_over_clips_are_resampled_as_scores_are(boot):
    values = np.random.default_rng(0).normal(size=(13, 2))
    found = of_clips(boot, values * [3, 2], np.array([3.0, 2.0]))
    for region in range(2):
        expected = boot.of(values[:, region])
        np.testing.assert_allclose(found.value[region], expected.value)
        np.testing.assert_allclose(found.draws[:, region], expected.draws)


def test_ratios_weigh_clips_by_what_they_hold(boot):
    rng = np.random.default_rng(1)
    above, below = rng.normal(size=(13, 2)), rng.uniform(1, 2, size=(13, 2))
    found = of_clips(boot, above, below)
    np.testing.assert_allclose(found.value, above.sum(axis=0) / below.sum(axis=0))
    chosen = np.repeat(np.arange(boot.n_scenes), boot.times[7])
    rows = np.concatenate([np.flatnonzero(boot.block == s) for s in chosen])
    np.testing.assert_allclose(found.draws[7], above[rows].sum(axis=0) / below[rows].sum(axis=0))


def test_products_of_two_clips_vary_twice_as_far():
    """The spread of a squared mean over new samples, against what the draws of one sample say."""
    n, again = 60, []
    rng = np.random.default_rng(2)
    for _ in range(400):
        x = rng.normal(1, 1, size=n)
        again.append(x.mean() ** 2)
    x = rng.normal(1, 1, size=n)
    each = x[:, None] * x.mean()  # a clip's part of the product of two means
    boot = SceneBootstrap(np.arange(n), draws=2000, seed=0)
    spread = of_clips(boot, each, np.ones(1), order=2).draws.std()
    assert 0.75 < spread / np.std(again) < 1.3
    assert of_clips(boot, each, np.ones(1)).draws.std() < 0.6 * spread


def test_rows_say_what_the_map_says(boot):
    regions = two_regions(LOWER, HIGHER)
    values = np.random.default_rng(3).normal([5, 0], 1, size=(13, 2))
    rows = area_rows("a-map", of_clips(boot, values, np.ones(2)), regions, boot, np.arange(5.0))
    assert list(rows["region"]) == [LOWER, HIGHER]
    assert rows["ci_low"][0] > 0 > rows["ci_low"][1]
    assert rows["p"][0] < 0.05 < rows["p"][1]
    assert (rows["p_holm"] >= rows["p"]).all()
    np.testing.assert_allclose(rows["q25"], [0.5, 3.25])
    bare = area_rows("weights", RegionValues(np.array([1.0, 2.0])), regions, boot, None)
    assert bare[["ci_low", "ci_high", "p", "p_holm", "q25"]].isna().all(axis=None)


def test_a_claim_holds_when_its_difference_is_clear_of_zero(boot):
    values = np.random.default_rng(5).normal([5, 0], 1, size=(13, 2))
    found = of_clips(boot, values, np.ones(2))
    earlier = claim("m", found, two_regions(LOWER, HIGHER), boot, higher=False)
    assert earlier.holds
    assert (earlier.larger, earlier.smaller) == (LOWER, HIGHER)
    np.testing.assert_allclose(earlier.difference, found.value[0] - found.value[1])
    later = claim("m", found, two_regions(LOWER, HIGHER), boot, higher=True)
    assert not later.holds
    np.testing.assert_allclose(later.interval, [-end for end in earlier.interval[::-1]], rtol=0.1)
    assert claim("m", found, two_regions("x", "y"), boot, higher=True) is None


def linear(weight):
    return FirstLayer(lambda columns: weight[columns], lambda x: x @ weight, lambda targets: weight[:0])


@pytest.mark.parametrize("what", ["importance", "patterns"])
def test_without_a_signal_no_more_areas_pass_than_chance_lets_through(what):
    """40 areas of 6 voxels, smooth noise in time, a decoder that was fitted to noise: at 5 %, 2 of 40 are expected."""
    passed = []
    for seed in range(15):
        rng = np.random.default_rng(seed)
        b, v, y = 90, 240, 7
        noise = rng.normal(size=(2, b + 2, v)).astype(np.float32)
        noise = noise[:, 2:] + 0.7 * noise[:, 1:-1] + 0.4 * noise[:, :-2]  # neighbours in time are alike
        goal = np.repeat(rng.normal(size=(b // 5, y)), 5, axis=0).astype(np.float32)  # and so are clips of a scene
        weight = rng.normal(size=(v, y)).astype(np.float32)
        layer = linear(weight)
        regions = volume_regions({str(i): np.arange(v) // 6 == i for i in range(40)}, v, least=1)
        boot = SceneBootstrap(np.arange(b) // 5, draws=100, seed=seed)
        if what == "importance":
            lost = permutation_importance(layer, noise.mean(axis=0), goal, regions)
            if lost.score == 0:
                continue
            found = of_clips(boot, lost.per_clip, regions.sizes)
        else:
            carried = patterns(layer, (noise[0], noise[1]), regions)
            found = of_clips(boot, carried.per_clip, regions.sizes, order=2)
        passed += list(found.p[1:] < 0.05)
    assert len(passed) >= 200
    assert np.mean(passed) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(passed))


def test_results_read_back_as_they_were_written(tmp_path, boot):
    regions = two_regions(LOWER, HIGHER)
    found = of_clips(boot, np.random.default_rng(6).normal(size=(13, 2)), np.ones(2))
    values = np.array([1, np.nan, 3, 4, 5, 6, 7], np.float32)
    maps = {"Perception": [VoxelMap("a", "A", "ppm", values, "Two. Sentences.", (0.0, 3.0))]}
    claims = [claim("a", found, regions, boot, higher=True)]
    written = MapResults(maps, area_rows("a", found, regions, boot, None), claims, ["It is so."], "volume")
    written.write(tmp_path)
    read = MapResults.read(tmp_path)
    np.testing.assert_array_equal(read.every[0].values, values)
    assert read.every[0].limits == (0.0, 3.0)
    assert read.claims == claims
    assert list(read.findings) == ["It is so."]
    assert (read.space, read.clips) == ("volume", None)
    assert read.areas.equals(written.areas)


def test_p_is_that_of_paired_flips(boot):
    values = np.random.default_rng(8).normal([0.9, 0.4], 1, size=(13, 2))
    found = of_clips(boot, values, np.ones(2))
    assert (found.value > 0).all()
    both_sides = [paired_p_value(values[:, region], boot.block, seed=boot.seed) for region in range(2)]
    np.testing.assert_allclose(found.p, np.array(both_sides) / 2, atol=0.04)
    assert (of_clips(boot, -values, np.ones(2)).p > 0.5).all()
    # Of 2^8 flips, only the one that changes nothing is as large where all scenes agree.
    np.testing.assert_allclose(of_clips(boot, np.ones((13, 400)), np.ones(400)).p, 2.0**-8, rtol=0.3)
    few = SceneBootstrap(np.repeat(np.arange(5), 3)[:13], draws=100, seed=0)
    assert np.isnan(of_clips(few, values, np.ones(2)).p).all()
