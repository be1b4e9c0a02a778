"""A whole simulated subject on tiny films: files, resume, repeats, ceilings, and a brain that saw nothing."""

import hashlib

import nibabel as nib
import numpy as np
import pytest
from tiny_films import truth_table, write_bars

from neuroclips.artefacts import read_arrays
from neuroclips.data import bold
from neuroclips.data.clips import TestClips
from neuroclips.errors import ArtefactError
from neuroclips.recipe import BrainRecipe
from neuroclips.simulation import scanner
from neuroclips.simulation.observer import identification_scores
from neuroclips.simulation.subject import simulate_subject

SECONDS = {"seg1": 46, "seg2": 46, "seg3": 46, "test1": 34, "test2": 38}
RECIPE = BrainRecipe(subject=2, train_repeats=2, test_repeats=3)


def run_path(root, segment, repeat):
    return root / "subject2" / "fmri" / segment / "cifti" / f"{segment}_{repeat}_Atlas.dtseries.nii"


def cleaned(root, segment, repeat, delay=2):
    n_trs = SECONDS[segment] // 2
    return bold.clean(bold.read_run(run_path(root, segment, repeat), n_trs).values, n_trs, delay)


def digests(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*.nii"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = tmp_path_factory.mktemp("world")
    films = {name: write_bars(base / f"{name}.mp4", s, seed=i) for i, (name, s) in enumerate(SECONDS.items())}
    truth = {name: truth_table(s, seed=10 + i) for i, (name, s) in enumerate(SECONDS.items())}
    made = simulate_subject(films, base / "root", base / "truth", scene_truth=truth, recipe=RECIPE, seed=3)
    return base, films, truth, made


def test_files_are_cc2017_shaped(world):
    base, _, _, made = world
    assert made["runs"] == 3 * 2 + 2 * 3 == len(list((base / "root").rglob("*.nii")))
    for segment, volumes in (("seg1", 23 + 5), ("test1", 17 + 5), ("test2", 19 + 6)):
        image = nib.load(run_path(base / "root", segment, 1))
        assert isinstance(image, nib.Cifti2Image)
        assert image.shape == (volumes, 91_282)
        series, brain = image.header.get_axis(0), image.header.get_axis(1)
        assert (series.step, series.unit, series.size) == (2.0, "SECOND", volumes)
        structures = [(name, where) for name, where, _ in brain.iter_structures()]
        assert structures[0] == ("CIFTI_STRUCTURE_CORTEX_LEFT", slice(0, 29_696))
        assert structures[1][0] == "CIFTI_STRUCTURE_CORTEX_RIGHT"
        assert len(structures) == 21
        assert brain.nvertices["CIFTI_STRUCTURE_CORTEX_LEFT"] == 32_492
        volume_part = brain[brain.volume_mask]
        assert len(np.unique(volume_part.voxel, axis=0)) == len(volume_part) == 91_282 - 59_412
        values = image.get_fdata(dtype=np.float32)
        assert image.get_data_dtype() == np.float32
        assert values.mean() == pytest.approx(10_000, rel=0.01)
        assert np.median(values.std(0) / values.mean(0)) == pytest.approx(0.0115, abs=0.003)


def test_written_bytes_equal_what_nibabel_would_write(tmp_path):
    values = np.random.default_rng(0).normal(size=(91_282, 6)).astype(np.float32)
    scanner.write_run(tmp_path / "a.dtseries.nii", values, 2.0)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.dtseries.nii").get_fdata(dtype=np.float32), values.T)
    axes = (nib.cifti2.SeriesAxis(0.0, 2.0, 6, "SECOND"), scanner.grayordinates())
    nib.Cifti2Image(values.T, axes).to_filename(tmp_path / "b.dtseries.nii")
    assert (tmp_path / "a.dtseries.nii").read_bytes() == (tmp_path / "b.dtseries.nii").read_bytes()


def test_resume_makes_identical_bytes_and_keeps_finished_runs(world, tmp_path):
    base, films, truth, _ = world
    before = digests(base / "root")
    lost, kept = run_path(base / "root", "test2", 2), run_path(base / "root", "seg1", 1)
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    simulate_subject(films, base / "root", base / "truth", scene_truth=truth, recipe=RECIPE, seed=3)
    assert kept.stat().st_mtime_ns == stamp
    assert digests(base / "root") == before
    (tmp_path / "truth").mkdir()
    with pytest.raises(ArtefactError, match="other films or settings"):
        simulate_subject(films, tmp_path / "root", base / "truth", scene_truth=truth, recipe=RECIPE, seed=4)


def test_repeats_share_the_signal_and_not_the_noise(world):
    base = world[0]
    driven = np.asarray(read_arrays(base / "truth" / "brain.safetensors")["driven"])
    response = read_arrays(base / "truth" / "seg1.safetensors")["response"]
    runs = [bold.read_run(run_path(base / "root", "seg1", r), 23).values[:, driven] for r in (1, 2)]
    rest = [bold.detrend(run / run.mean(0) * 100 - response) for run in runs]
    between = [np.corrcoef(a, b)[0, 1] for a, b in zip(rest[0].T[::29], rest[1].T[::29])]
    assert abs(np.mean(between)) < 0.03


def test_ceilings_agree_with_repeat_correlations(world):
    base = world[0]
    ceiling = np.asarray(read_arrays(base / "truth" / "brain.safetensors")["ceiling"])
    r = np.mean(
        [(cleaned(base / "root", s, 1) * cleaned(base / "root", s, 2)).sum(0) / 22 for s in ("seg1", "seg2", "seg3")],
        axis=0,
    )
    for low, high in ((0.15, 0.3), (0.3, 0.45), (0.45, 0.6), (0.6, 0.8)):
        here = (ceiling > low) & (ceiling <= high)
        assert here.sum() > 30
        assert r[here].mean() == pytest.approx(ceiling[here].mean(), abs=0.05)
    assert np.corrcoef(r, ceiling)[0, 1] > 0.7


def test_non_visual_cortex_and_subcortex_are_silent(world):
    base = world[0]
    truth = read_arrays(base / "truth" / "brain.safetensors")
    silent = truth["group"] == 0
    r = (cleaned(base / "root", "seg2", 1) * cleaned(base / "root", "seg2", 2)).sum(0) / 22
    assert abs(r[silent].mean()) < 0.01
    assert (truth["ceiling"][silent] == 0).all()
    assert (truth["strength"][silent] == 0).all()


def test_a_brain_without_signal_does_not_know_the_film(world, tmp_path):
    base, films, _, _ = world
    some = {name: films[name] for name in ("seg1", "seg2")}
    recipe = RECIPE.model_copy(update={"signal": 0.0})
    made = simulate_subject(some, tmp_path / "root", tmp_path / "truth", scene_truth=None, recipe=recipe, seed=3)
    assert "image statistics" in made["meaning"]
    driven = np.asarray(read_arrays(base / "truth" / "brain.safetensors")["driven"])
    response = bold.zscore(bold.detrend(bold.crop(read_arrays(base / "truth" / "seg1.safetensors")["response"], 23, 2)))
    r = (cleaned(tmp_path / "root", "seg1", 1)[:, driven] * response).sum(0) / 22
    seen = (cleaned(base / "root", "seg1", 1)[:, driven] * response).sum(0) / 22
    assert abs(r.mean()) < 0.02
    assert seen.mean() > 0.4
    between = (cleaned(tmp_path / "root", "seg1", 1) * cleaned(tmp_path / "root", "seg1", 2)).sum(0) / 22
    assert abs(between.mean()) < 0.01


def test_ideal_observer_identifies_clips_and_gains_from_repeats(world):
    base = world[0]
    ceiling = np.asarray(read_arrays(base / "truth" / "brain.safetensors")["ceiling"])
    mask = np.zeros(59_412, bool)
    mask[np.flatnonzero(ceiling > 0.1)[::600]] = True  # few voxels, else it never errs
    segments = ("test1", "test2")
    runs = [np.stack([cleaned(base / "root", s, r)[:, mask] for r in (1, 2, 3)], 1) for s in segments]
    values = np.concatenate(runs)
    b = len(values)
    clips = TestClips(
        bold=values,
        present=np.ones((b, 3), bool),
        frames=np.zeros((b, 1, 3, 2, 2), np.uint8),
        segment=np.repeat([0, 1], [17, 19]),
        onset=np.concatenate([np.arange(17), np.arange(19)]) * 2.0,
        scene=np.arange(b),
        segments=segments,
        reliability=np.zeros(mask.sum(), np.float32),
    )

    def two_way(n_repeats):
        scores = identification_scores(clips, mask, base / "truth", delay_trs=2, n_repeats=n_repeats)
        assert scores.shape == (b, b)
        return np.mean(np.sum(scores < scores.diagonal()[:, None], 1) / (b - 1))

    assert two_way(1) > 0.6
    assert two_way(3) > two_way(1)
    shuffled = clips.take(np.random.default_rng(0).permutation(b))
    kept = identification_scores(shuffled, mask, base / "truth", delay_trs=2)
    assert np.mean(np.sum(kept < kept.diagonal()[:, None], 1) / (b - 1)) == pytest.approx(two_way(3), abs=1e-6)
