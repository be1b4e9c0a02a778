"""The stage ``maps`` and the command: on the tiny run, and on a planted study in volume space."""

import html
import io
import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from planted_run import write_split
from rich.console import Console
from tiny_run import TinyRun, copied, walk
from typer.testing import CliRunner

from neuroclips import cli, maps
from neuroclips.artefacts import read_arrays, read_card, read_json, write_arrays, write_json
from neuroclips.cortex.regions import HIGHER, LOWER
from neuroclips.cortex.results import MapResults
from neuroclips.data.prepared import load_clips
from neuroclips.data.volumes import VolumeMask, write_mask
from neuroclips.errors import ArtefactError, DataError
from neuroclips.recipe import MapsRecipe, load_recipe
from neuroclips.reconstructor import Reconstructor

NAMES = [
    "perception-patterns", "perception-importance", "perception-weights", "semantics-patterns",
    "semantics-importance", "semantics-weights", "noise-ceiling", "low-level-unique", "semantic-unique",
    "shared-variance", "explained-variance", "reencoding-blurry", "reencoding-nearest",
    "reencoding-nearest-best", "reencoding-nearest-median", "reencoding-nearest-worst",
]  # fmt: skip


@pytest.fixture(scope="module")
def mapped(tiny_run, tmp_path_factory):
    """The tiny run, whose recipe asks for maps only now."""
    run = copied(tiny_run.directory, tmp_path_factory.mktemp("mapped") / "run")
    recipe = tiny_run.recipe.model_copy(update={"maps": MapsRecipe()})
    return TinyRun(run, recipe, *walk(recipe, run))


def command(*words):
    return CliRunner().invoke(cli.app, ["maps", *map(str, words)])


def test_every_map_covers_the_selected_voxels_and_is_in_every_file(mapped):
    assert [line.split()[1] for line in mapped.said.splitlines() if "  done in " in line] == ["maps", "report"]
    own, prepared = mapped.directory / "maps", load_clips(mapped.directory / "prepare")
    found = MapResults.read(own)
    assert [each.name for each in found.every] == NAMES  # no "preference": so few clips explain nothing to be shared
    assert min(np.nansum(each.values) for each in found.every if each.name.endswith("-importance")) == 0
    mask = np.asarray(prepared.mask)
    cifti = nib.load(own / "maps.dscalar.nii")
    table = pd.read_csv(own / "maps.csv")
    for row, each in zip(np.asarray(cifti.dataobj), found.every):
        assert np.isnan(each.values[~mask]).all()
        np.testing.assert_array_equal(row, each.values)
        np.testing.assert_allclose(table[each.name], each.values, rtol=1e-6)
        assert (own / "pictures" / f"{each.name}.png").stat().st_size > 50_000
        assert each.text.count(". ") == 1  # two sentences
        assert (own / "gifti" / f"{each.name}.R.func.gii").exists()
    assert set(found.areas["map"]) == {*NAMES[:-3], "perception-lesion", "semantics-lesion", "top-1-lesion"}
    assert {"all voxels", LOWER, HIGHER, "early", "V1"} <= set(found.areas["region"])
    page, report = (html.unescape((mapped.directory / name).read_text()) for name in ("maps.html", "report.html"))
    for text in (page, report):
        assert all(each.text in text for each in found.every)
        assert 'id="cortex"' in text
    assert "re-encoding" in report
    assert read_json(mapped.directory / "test_split_opened.json")["times"] == 2  # maps and scores
    assert found.clips.groupby("generator")["clip"].count().to_dict() == {"blurry": 20, "nearest": 20}


def test_importance_adds_up_in_the_table_as_in_the_map(mapped):
    found = MapResults.read(mapped.directory / "maps")
    values = next(each.values for each in found.every if each.name == "semantics-importance")
    rows = found.areas[found.areas["map"] == "semantics-importance"].set_index(["region", "hemisphere"])
    everything = rows.loc[("all voxels", "both")]
    assert everything["unit"] == "ppm of explained variance"
    np.testing.assert_allclose(everything["value"], np.nanmean(values), rtol=1e-3)
    assert everything["n_voxels"] == 700
    sides = rows.loc["all voxels"].loc[["left", "right"]]
    np.testing.assert_allclose((sides["value"] * sides["n_voxels"]).sum(), np.nansum(values), rtol=1e-3)


def test_the_command_finds_the_maps_there_and_adds_what_is_asked(mapped, tmp_path):
    run = copied(mapped.directory, tmp_path / "run")
    before = read_card(run / "maps")["content"]
    done = command(run, "--format", "pdf", "--clip", "test1/0004s")
    assert done.exit_code == 0, done.output
    assert f"page      {run}/maps.html" in done.output
    assert read_card(run / "maps")["content"] == before
    assert (run / "maps" / "pictures" / "noise-ceiling.pdf").read_bytes()[:5] == b"%PDF-"
    shown = nib.load(run / "maps" / "clips" / "test1_0004s.dscalar.nii")
    assert shown.shape == (2, 59_412)
    products = read_arrays(run / "maps" / "reencoding-nearest.safetensors")["products"]
    clip = load_clips(run / "prepare").test.ids.index("test1/0004s")
    np.testing.assert_allclose(
        np.nanmean(np.asarray(shown.dataobj)[1]), products[clip].astype(np.float64).mean(), rtol=1e-2, atol=1e-3
    )


def test_another_method_is_another_set_of_maps(mapped, tmp_path):
    run = copied(mapped.directory, tmp_path / "run")
    before = MapResults.read(run / "maps")
    done = command(run, "--method", "ridge", "--lesions", "none")
    assert done.exit_code == 0, done.output
    after = MapResults.read(run / "maps")
    assert read_card(run / "maps")["summary"]["method"] == "ridge"
    assert not after.areas["map"].str.endswith("-lesion").any()
    named = {each.name: each.values for each in after.every}
    for each in before.every:
        if each.name.endswith("-importance"):
            assert np.nanmax(np.abs(each.values - named[each.name])) > 0
        if each.name in ("noise-ceiling", "semantic-unique"):
            np.testing.assert_allclose(named[each.name], each.values, rtol=1e-4, atol=1e-6)
    assert command(run).exit_code == 0  # nothing asked: as before
    assert read_card(run / "maps")["summary"]["method"] == "ridge"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--format", "gif"), "--format gif: expected one of png, svg, pdf"),
        (("--clip", "test9/0000s"), "no test clip 'test9/0000s'; there are 20, test1/0000s to test2/0018s"),
    ],
)
def test_wrong_words_are_one_clear_error(mapped, words, text):
    error = command(mapped.directory, *words).exception
    assert isinstance(error, DataError)
    assert text in str(error)


def test_a_run_without_a_fit_is_refused(mapped, tmp_path):
    error = command(tmp_path).exception
    assert isinstance(error, ArtefactError)
    assert f"{tmp_path}: not a fitted run" in str(error)
    run = copied(mapped.directory, tmp_path / "run")
    (run / "targets" / "train.safetensors").unlink()
    assert "the stage targets is not finished" in str(command(run, "--method", "ridge").exception)
    card = json.loads((run / "fit" / "card.json").read_text())
    card["recipe"]["brain"]["shoe_size"] = 44
    (run / "fit" / "card.json").unlink()
    write_json(run / "fit" / "card.json", card)
    assert "made by another version of neuroclips" in str(command(run).exception)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A fitted run in volume space: 150 voxels of a mask, 110 of them selected, in an atlas of two areas."""
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(5)
    inside = np.zeros((7, 8, 6), bool)
    inside.ravel()[rng.permutation(inside.size)[:150]] = True
    affine = np.diag([-3.0, 3.0, 3.0, 1.0])
    volume = VolumeMask(folder / "mask.nii", inside, affine)
    atlas = np.zeros(inside.shape, np.int16)
    atlas[:4], atlas[4:] = 1, 2
    nib.save(nib.Nifti1Image(atlas, affine), folder / "atlas.nii")
    (folder / "atlas.tsv").write_text("index\tname\n1\tright\n2\tleft\n")
    run, selected = folder / "run", rng.permutation(150) < 110
    names = {"train": ["a", "b", "c"], "validation": ["d"], "test": ["e", "f"]}
    frames, mixing = {}, rng.normal(size=(4, 110))
    for split, segments in names.items():
        n = 16 * len(segments)
        film = rng.uniform(size=(n, 4))
        picture = np.clip(film[:, :3, None, None] * 255, 0, 255).astype(np.uint8).repeat(32, 2).repeat(32, 3)
        picture[:, :, :16, :16] = (film[:, 3] * 255).astype(np.uint8)[:, None, None, None]
        frames[split] = np.stack([picture, np.roll(picture, 3, axis=3), np.roll(picture, 6, axis=3)], axis=1)
        bold = ((film - 0.5) @ mixing)[:, None] + 0.7 * rng.normal(size=(n, 3, 110))
        write_split(run, split, {
            "bold": (bold / bold.std()).astype(np.float32), "present": np.ones((n, 3), bool), "frames": frames[split],
            "segment": np.repeat(np.arange(len(segments)), 16).astype(np.int32),
            "onset": np.tile(np.arange(16) * 2.0, len(segments)), "scene": np.tile(np.arange(16) // 2, len(segments)),
        })  # fmt: skip
    about = {"t_r": 2.0, "delay_trs": 2, "lags": [0], "space": "volume, mask mask.nii", "films": "../films"}
    write_json(run / "prepare" / "segments.json", about | {"segments": names})
    shown = np.where(selected, 0.5, 0.0).astype(np.float32)
    write_arrays(run / "prepare" / "voxels.safetensors", {
        "mask": selected, "p": shown.astype(np.float64), "t": shown, "reliability": shown,
    })  # fmt: skip
    write_mask(run / "prepare" / "mask.nii", volume)
    recipe = load_recipe("table", {"data.root": str(folder / "study.tsv"), "maps.lesions": "areas"})
    selection = recipe.data.selection.model_copy(
        update={"atlas": folder / "atlas.nii", "atlas_labels": folder / "atlas.tsv", "rois": ("left", "right")}
    )
    recipe = recipe.model_copy(update={
        "data": recipe.data.model_copy(update={"selection": selection}),
        "decoders": recipe.decoders.model_copy(update={"methods": ("ridge",)}),
        "evaluate": recipe.evaluate.model_copy(update={"bootstrap": 100}),
    })  # fmt: skip
    prepared, reconstructor = load_clips(run / "prepare"), Reconstructor()
    for split in names:
        seen = reconstructor.targets(getattr(prepared, split))
        write_arrays(run / "targets" / f"{split}.safetensors", {"latents": seen.latents, "tokens": seen.tokens})
    reconstructor.fit(prepared.train, prepared.validation).save(run / "fit" / "ridge")
    return run, recipe, volume, selected, atlas


def made(run, recipe, own):
    own.mkdir()
    return maps.maps(run, own, recipe, Console(file=io.StringIO()))


def test_a_study_in_volume_space_gets_slices_a_nifti_and_its_atlas_areas(study, tmp_path):
    run, recipe, volume, selected, atlas = study
    own = run / "maps"
    said = made(run, recipe, own)
    assert said["space"] == "volume"
    assert "preference" in said["maps"]
    found = MapResults.read(own)
    image = nib.load(own / "maps.nii.gz")
    np.testing.assert_array_equal(image.affine, volume.affine)
    values = np.asarray(image.dataobj)
    assert values.shape == (*volume.inside.shape, len(found.every))
    for number, each in enumerate(found.every):
        np.testing.assert_array_equal(values[..., number][volume.inside], each.values)
        np.testing.assert_array_equal(np.isfinite(each.values), selected)
        assert (own / "pictures" / f"{each.name}.png").exists()
    areas = found.areas.query("map == 'noise-ceiling'").set_index("region")
    ceiling = values[..., [each.name for each in found.every].index("noise-ceiling")]
    for number, name in ((1, "right"), (2, "left")):
        np.testing.assert_allclose(areas.loc[name, "value"], np.nanmean(ceiling[atlas == number]), rtol=1e-5)
    assert {"left", "right"} <= set(found.areas.query("map == 'semantics-lesion'")["region"])
    page = (own / "maps.html").read_text()
    assert 'id="cortex"' not in page
    assert "<img" in page
    # The film is decoded from some scans and found again in the others.
    rows = found.areas.query("map == 'reencoding-nearest' and region == 'all voxels'")
    assert rows["ci_low"].item() > 0.1


def test_where_nobody_says_where_voxels_are_there_are_numbers_only(study, tmp_path):
    run, recipe, *_ = study
    run = copied(run, tmp_path / "run")
    (run / "prepare" / "mask.nii").unlink()
    recipe = recipe.model_copy(update={"maps": MapsRecipe(lesions=None, encoding=False)})
    said = made(run, recipe, tmp_path / "own")
    assert said["space"] == "unknown"
    files = {path.name for path in (tmp_path / "own").rglob("*") if path.is_file()}
    assert {"areas.csv", "voxels.safetensors", "maps.html"} <= files
    assert not {"maps.csv", "maps.nii.gz", "maps.dscalar.nii"} & files


def test_a_method_that_was_not_fitted_is_refused(study, tmp_path):
    run, recipe, *_ = study
    recipe = recipe.model_copy(update={"maps": MapsRecipe(method="neural")})
    with pytest.raises(DataError, match="neural was not fitted; expected one of ridge"):
        made(run, recipe, tmp_path / "own")


def test_one_presentation_cannot_be_decoded_and_kept_for_comparison(study, tmp_path):
    run, recipe, *_ = study
    run = copied(run, tmp_path / "run")
    path = run / "prepare" / "test.safetensors"
    arrays = {name: np.array(values) for name, values in read_arrays(path).items()}
    path.unlink()
    write_arrays(path, {name: values[:, :1] for name, values in arrays.items()})
    said = made(run, recipe, tmp_path / "own")
    assert "Re-encoding needs two presentations" in " ".join(said["findings"])
    found = MapResults.read(tmp_path / "own")
    assert found.clips is None
    assert "noise and all" in found.every[0].text
    assert "noise-ceiling" not in [each.name for each in found.every]
