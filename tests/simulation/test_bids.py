"""A simulated study in BIDS derivative layout: files, onsets that do not fall on volumes, planted responses, resume."""

import hashlib
import itertools
import json
import math
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from neuroclips.artefacts import read_arrays
from neuroclips.data.bold import detrend, zscore
from neuroclips.data.frames import film_info
from neuroclips.errors import ArtefactError, DataError
from neuroclips.simulation import bids, scanner
from neuroclips.simulation.features import film_features
from neuroclips.simulation.film import frame_table, plan_film
from neuroclips.simulation.response import components

T_R, SECONDS = 1.5, 19.5  # 13 TRs; but no film starts with a volume, so that 12 clips fit
SMALL = dict(train_segments=2, validation_segments=1, test_segments=1, seconds=SECONDS, size=64)
STEM = "sub-01/func/sub-01_task-film_run-01"
VOLUME = f"{STEM}_space-MNI152NLin2009cAsym_res-4_desc"


@pytest.fixture(scope="module")
def tunings():
    """Saves time: a brain is made once, and films this short are made here, not in processes of their own.

    Yields the tunings that were drawn, by seed.
    """
    drawn = {}

    def once(make, made):
        def by_seed(*arguments):
            if arguments[-1] not in made:
                made[arguments[-1]] = make(*arguments)
            return made[arguments[-1]]

        return by_seed

    def one_by_one(jobs, progress):
        for done, (name, job) in enumerate(jobs.items(), 1):
            job()
            if progress is not None:
                progress(done, len(jobs), f"film {name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bids, "tune", once(bids.tune, drawn))
        patch.setattr(bids, "receptive_fields", once(bids.receptive_fields, {}))
        patch.setattr(bids, "in_parallel", one_by_one)
        yield drawn


@pytest.fixture(scope="module")
def world(tmp_path_factory, tunings):
    out = tmp_path_factory.mktemp("bids") / "study"
    return out, bids.simulate_bids_study(out, **SMALL), pd.read_csv(out / "study.tsv", sep="\t")


@pytest.fixture(scope="module")
def surface(tmp_path_factory, world, tunings):
    """The same brain and films on the cortex, another TR; films that are there are kept."""
    out = tmp_path_factory.mktemp("bids") / "surface"
    shutil.copytree(world[0] / "stimuli", out / "stimuli")
    return (
        out,
        bids.simulate_bids_study(out, **SMALL, t_r=2.2, space="cortex"),
        pd.read_csv(out / "study.tsv", sep="\t"),
    )


def digests(out):
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def measured(out, run):
    """(T, P) of a run, by nibabel alone."""
    image = nib.load(out / run)
    if run.endswith(".nii.gz"):
        mask = nib.load(out / run.replace("preproc_bold", "brain_mask"))
        return image.get_fdata(dtype=np.float32)[np.asarray(mask.dataobj) > 0].T
    return image.get_fdata(dtype=np.float32)


def answers(out, row, t_r, late=0):
    """z-scored volumes 4 s (in whole TRs) after each clip of one presentation, cut as the table's contract says."""
    first = math.ceil(row.onset / t_r)
    n_clips = math.floor((SECONDS - (first * t_r - row.onset)) / t_r)
    start = first + round(4 / t_r) + late
    return zscore(detrend(measured(out, row.run)[start : start + n_clips], 1))


def repeat_correlation(out, table, t_r, late=0):
    """(films, P) correlation between the first two repeats, the second cut ``late`` volumes late."""
    rows = []
    for _, shown in table[table["repeat"] <= 2].groupby("film"):
        one, two = (answers(out, row, t_r, late * number) for number, row in enumerate(shown.itertuples()))
        rows.append((one * two).sum(0) / (len(one) - 1))
    return np.array(rows)


def test_files_are_bids_derivatives(world):
    out, made, table = world
    assert made["runs"] == 1 * 2 + 1 * 2 + 1 * 3  # two training films a run; splits share none
    assert (table.groupby("run").split.nunique() == 1).all()
    assert made["presentations"] == 3 * 2 + 1 * 3 == len(table)
    about = json.loads((out / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "neuroclips simulation"
    names = {p.name.removeprefix("sub-01_task-film_run-01_") for p in (out / "sub-01/func").glob("*run-01*")}
    assert names == {
        "space-MNI152NLin2009cAsym_res-4_desc-preproc_bold.nii.gz",
        "space-MNI152NLin2009cAsym_res-4_desc-preproc_bold.json",
        "space-MNI152NLin2009cAsym_res-4_desc-brain_mask.nii.gz",
        "desc-confounds_timeseries.tsv",
        "events.tsv",
    }
    info = film_info(out / "stimuli" / "film01.mp4")
    assert (info.fps, info.n_frames, info.height, info.width) == (25, round(SECONDS * 25), 64, 64)
    assert not any(
        b"truth" in p.read_bytes() for p in out.rglob("*") if p.suffix in (".tsv", ".json") and p.parent.name != "truth"
    )


def test_volumes_state_their_tr_and_their_brain(world):
    out, made, table = world
    image, mask = nib.load(out / f"{VOLUME}-preproc_bold.nii.gz"), nib.load(out / f"{VOLUME}-brain_mask.nii.gz")
    sidecar = json.loads((out / f"{VOLUME}-preproc_bold.json").read_text())
    assert sidecar["RepetitionTime"] == T_R == image.header.get_zooms()[3]
    assert sidecar["TaskName"] == "film"
    assert image.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_array_equal(image.affine, mask.affine)
    whole = out / table["mask"].unique().item()
    assert whole.name == "sub-01_task-film_space-MNI152NLin2009cAsym_res-4_desc-brain_mask.nii.gz"
    assert whole.read_bytes() == (out / f"{VOLUME}-brain_mask.nii.gz").read_bytes()
    assert image.shape[:3] == mask.shape == (49, 58, 49)
    inside, values = np.asarray(mask.dataobj) > 0, np.asarray(image.dataobj)
    assert inside.sum() == made["voxels"]
    assert 0.9 < inside.sum() * 4**3 / 1e6 < 1.4  # litres: a brain without its cerebellum
    assert (values[~inside] == 0).all()
    spread = values[inside].std(1) / values[inside].mean(1)
    assert np.median(values[inside]) == pytest.approx(10_000, rel=0.01)
    assert np.median(spread) == pytest.approx(0.0115, abs=0.003)
    # Voxels that respond lie where visual cortex is: at the back.
    brain = read_arrays(out / "truth" / "brain.safetensors")
    np.testing.assert_array_equal(brain["ijk"], np.argwhere(inside))
    y = (brain["ijk"] @ image.affine[:3, :3].T + image.affine[:3, 3])[:, 1]
    assert np.median(y[brain["driven"]]) < -60 < np.median(y)


def test_noise_of_a_voxel_has_unit_variance_whether_it_holds_one_vertex_or_many():
    places = bids.voxels()
    assert places.weights.sum(1) == pytest.approx(1)
    noise = places.weights @ scanner.noise(np.random.default_rng(0), 300, T_R) * places.scale[:, None]
    variance = np.var(np.diff(noise), axis=1) / (2 * (1 - scanner.AUTOCORRELATION))  # differences know no drift
    held = np.diff(places.weights[:, : bids.N_CORTEX].indptr)
    for low, high in ((0, 0), (1, 1), (2, 5), (6, 12), (13, 99)):
        assert variance[(held >= low) & (held <= high)].mean() == pytest.approx(1, abs=0.02)


def test_table_events_and_confounds_agree(world):
    out, _, table = world
    assert set(table.split) == {"train", "validation", "test"}
    for run, shown in table.groupby("run"):
        n_volumes, stem = nib.load(out / run).shape[3], run.partition("_space")[0]
        events = pd.read_csv(out / f"{stem}_events.tsv", sep="\t")
        films = events[events.trial_type == "film"]
        np.testing.assert_array_equal(films.onset, shown.onset)
        assert ("stimuli/" + films.stim_file == shown.film.to_numpy()).all()
        assert events.stim_file[events.trial_type == "rest"].isna().all()
        np.testing.assert_allclose(events.onset[1:], (events.onset + events.duration)[:-1], atol=2e-3)
        assert n_volumes * T_R == pytest.approx(events.onset.iloc[-1] + events.duration.iloc[-1], abs=2e-3)
        assert events.duration.iloc[-1] >= 12
        assert len(films) == shown.film.nunique() <= 2
        confounds = pd.read_csv(out / shown.confounds.iloc[0], sep="\t")
        assert len(confounds) == n_volumes
        moved = (
            confounds[["trans_x", "trans_y", "trans_z"]].to_numpy(),
            confounds[["rot_x", "rot_y", "rot_z"]].to_numpy(),
        )
        power = [np.abs(moved[0][t] - moved[0][t - 1]).sum() + 50 * np.abs(moved[1][t] - moved[1][t - 1]).sum()
                 for t in range(1, n_volumes)]  # fmt: skip
        assert math.isnan(confounds.framewise_displacement[0])
        np.testing.assert_allclose(confounds.framewise_displacement[1:], power, atol=2e-6)
        assert 0.03 < np.mean(power) < 0.3


@pytest.mark.parametrize("t_r", [1.5, 0.8, 2.2])
def test_films_start_between_volumes_and_always_at_the_same_moment_of_the_tr(t_r):
    moments = {name: bids.phase(number, t_r) for number, name in enumerate("abcde")}
    runs = bids.plan_runs({"a": 2, "b": 3, "c": 2, "d": 3, "e": 2}, moments, 20.2, t_r)
    shown = [one for run in runs for one in run]
    assert sorted((s.film, s.repeat) for s in shown) == sorted(
        [(f, r) for f in "abcde" for r in (1, 2)] + [("b", 3), ("d", 3)]
    )
    phases = pd.DataFrame([(s.film, s.onset % t_r) for s in shown], columns=["film", "phase"]).groupby("film").phase
    assert (phases.max() - phases.min() < 2e-3).all()
    assert np.diff(np.sort([0, *phases.first(), t_r])).min() > 0.02 * t_r  # off volumes, and from each other
    for run in runs:
        assert len({s.film for s in run}) == len(run)
        assert run[0].onset >= 6
        assert all(b.onset - a.onset >= 20.2 + 8 - 1e-6 for a, b in itertools.pairwise(run))
    neighbours = [frozenset(s.film for s in run) for run in runs if len(run) == 2]
    assert len(set(neighbours)) == len(neighbours) == 5


def test_repeats_agree_in_driven_voxels_when_cut_at_their_onsets(world):
    out, made, table = world
    brain = read_arrays(out / "truth" / "brain.safetensors")
    driven, ceiling = np.asarray(brain["driven"]), np.asarray(brain["ceiling"])
    still = np.setdiff1d(np.arange(made["voxels"]), driven)
    training = table[table.split == "train"]  # ceilings are those of the training films
    r = repeat_correlation(out, training, T_R)
    assert r[:, driven].mean() == pytest.approx(ceiling[driven].mean(), abs=0.05)
    assert ceiling[driven].mean() > 0.2
    assert abs(r[:, still].mean()) < 0.01
    assert (ceiling[still] == 0).all()
    weak, strong = (driven[(ceiling[driven] > a) & (ceiling[driven] < b)] for a, b in ((0, 0.2), (0.5, 1)))
    assert r[:, strong].mean() > r[:, weak].mean() + 0.3
    late = repeat_correlation(out, training, T_R, late=3)
    assert late[:, driven].mean() < 0.3 * r[:, driven].mean()


def test_scans_hold_the_planted_response_at_its_time_and_no_other(world):
    out, _, table = world
    driven = np.asarray(read_arrays(out / "truth" / "brain.safetensors")["driven"])
    at = dict.fromkeys(range(-2, 3), 0.0)
    for row in table.itertuples():
        planted = read_arrays(out / "truth" / f"{row.segment}.safetensors")["response"]
        start, n = int(row.onset / T_R), 14
        bold = measured(out, row.run)[:, driven]
        for shift in at:
            # A polynomial of degree 4 leaves what changes fast, which tells volumes apart.
            here = zscore(detrend(bold[start + 3 + shift : start + 3 + shift + n]))
            at[shift] += (here * zscore(detrend(planted[3 : 3 + n]))).sum(0).mean() / (n - 1) / len(table)
    assert max(at, key=at.get) == 0
    assert at[0] > 0.2
    assert max(at[-1], at[1]) < 0.75 * at[0]
    assert max(at[-2], at[2]) < at[0] / 4


def test_response_follows_the_film_from_its_onset_on(surface, tunings):
    out, _, table = surface
    (tuning,) = tunings.values()
    row, name = table.iloc[0], "film01"
    plan = plan_film(7, train_segments=3, test_segments=1, train_seconds=SECONDS, test_seconds=SECONDS)
    features = film_features(out / "stimuli" / f"{name}.mp4", frame_table(plan["seg1"], fps=25), 0.5)
    fine = components(features, tuning, n_volumes=200, lead=0, t_r=0.25)[:, :, ::50]  # four a second, from the onset
    chosen = np.searchsorted(np.sort(tuning.voxel), tuning.voxel[::50])
    planted = read_arrays(out / "truth" / f"{name}.safetensors")["response"][:, chosen]

    def unexplained(onset):
        since = (np.arange(len(planted)) + int(row.onset / 2.2) + 0.5) * 2.2 - onset  # seconds, middle of volumes
        basis = np.array([[np.interp(since, (np.arange(200) + 0.5) / 4, part[:, v], left=0) for part in fine]
                          for v in range(len(chosen))])  # (V, 4, T)  # fmt: skip
        rest = [y - b.T @ np.linalg.lstsq(b.T, y, rcond=None)[0] for b, y in zip(basis, planted.T)]
        return np.median([np.sum(e**2) / np.sum(y**2) for e, y in zip(rest, planted.T)])

    assert unexplained(row.onset) < 1e-3
    assert min(unexplained(row.onset + 0.5), unexplained(row.onset - 0.5)) > 5 * unexplained(row.onset)


def test_the_cortex_is_cifti_without_a_mask(surface):
    out, made, table = surface
    assert "mask" not in table
    name = f"{STEM}_space-fsLR_den-91k_bold"
    assert table.run[0] == f"{name}.dtseries.nii"
    assert json.loads((out / f"{name}.json").read_text())["RepetitionTime"] == 2.2
    image = nib.load(out / f"{name}.dtseries.nii")
    series = image.header.get_axis(0)
    assert (series.step, series.unit, image.shape[1]) == (2.2, "SECOND", 91_282)
    driven = np.asarray(read_arrays(out / "truth" / "brain.safetensors")["driven"])
    assert made["driven_voxels"] == len(driven) > 10_000
    assert driven.max() < 59_412
    assert 0.3 < made["median_ceiling"] < 0.6
    r = repeat_correlation(out, table, 2.2).mean(0)
    assert r[driven].mean() > 0.35
    assert abs(np.delete(r, driven).mean()) < 0.01


def test_resume_makes_identical_bytes_and_keeps_finished_files(world):
    out, made, _ = world
    before = digests(out)
    kept = out / f"{STEM.replace('run-01', 'run-02')}_events.tsv"
    stamp = kept.stat().st_mtime_ns
    for lost in ("stimuli/film02.mp4", f"{VOLUME}-preproc_bold.nii.gz", "study.tsv", "truth/brain.safetensors",
                 "truth/film03.safetensors", f"{STEM}_desc-confounds_timeseries.tsv"):  # fmt: skip
        (out / lost).unlink()
    told = []
    assert bids.simulate_bids_study(out, **SMALL, progress=lambda *what: told.append(what)) == made
    assert [what for what in told if what[2].startswith("film")] == [(1, 1, "film film02")]
    assert digests(out) == before
    assert kept.stat().st_mtime_ns == stamp


def test_refusals_say_what_to_do(world, tmp_path):
    with pytest.raises(ArtefactError, match=r"study.json: .* other settings; delete the folder"):
        bids.simulate_bids_study(world[0], **SMALL, seed=8)
    with pytest.raises(DataError, match=r"seconds is 20.2; expected a multiple of 0.5"):
        bids.simulate_bids_study(tmp_path, seconds=20.2)
    assert not list(tmp_path.iterdir())
