"""The list of published models: facts found in public listings, and nothing invented."""

import re

import pytest
import yaml

from neuroclips.errors import ArtefactError
from neuroclips.pretrained import catalogue
from neuroclips.pretrained.catalogue import Source, in_words, models_home, published, read_catalogue, ready_folder
from neuroclips.pretrained.convert import CONVERTERS
from neuroclips.recipe import load_recipe

# From the listings of the hub (pointers of Git LFS): file, bytes, first and last of the SHA-256.
LISTED = [
    ("sdxl-unclip", "unclip6_epoch0_step110000.ckpt", 17_980_447_939, "6bd7033d", "df155652"),
    ("sd-vae", "sd_image_var_autoenc.pth", 334_697_994, "1f34e0b4", "72f3d72c"),
    ("animatediff", "v3_sd15_mm.ckpt", 1_673_262_583, "24127118", "02168343"),
    ("animatediff", "v3_sd15_sparsectrl_rgb.ckpt", 1_988_040_333, "c93f27a3", "ddafbe45"),
    ("animatediff", "v3_sd15_adapter.ckpt", 102_134_097, "fd2d8e26", "d6c3472c"),
    ("animatediff", "realisticVisionV60B1_v51VAE.safetensors", 2_132_625_894, "15012c53", "1d70e21d"),
]
ROLES = {
    "sd-vae": {"vae"}, "clip-bigg": {"clip", "tokenizer"}, "sdxl-unclip": {"checkpoint"},
    "animatediff": {"base", "text", "motion", "adapter", "sparsectrl"}, "mindeye2": {"checkpoint"},
    "text-projector": {"projector"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "file", "size", "first", "last"), LISTED)
def test_sizes_and_hashes_are_those_of_the_listings(name, file, size, first, last):
    source = next(each for each in published()[name].sources if each.file == file)
    assert source.bytes == size
    assert source.sha256.startswith(first)
    assert source.sha256.endswith(last)


def test_every_model_has_what_a_user_must_know():
    assert list(published()) == [*[*ROLES][:4], "blip2", "git-large", *[*ROLES][4:]]
    for model in published().values():
        assert model.purpose
        assert re.search(r"\d{4}", model.cite)
        assert all(licence.link.startswith("https://") and licence.conditions for licence in model.licences)
        assert all(licence.name or licence.stated in ("none stated", "not known") for licence in model.licences)
        assert model.size > 1_000_000
        assert [bool(source.bytes and source.about) for source in model.sources].count(True) == 0


@pytest.mark.parametrize("name", published())
def test_sources_are_what_the_converter_takes(name):
    model = published()[name]
    if model.converter is None:
        assert all(source.into == source.file for source in model.sources)
        assert {"config.json", "tokenizer.json"} <= {source.file for source in model.sources}
        assert all(source.file.endswith((".json", ".txt", ".safetensors")) for source in model.sources)
    else:
        assert model.converter in CONVERTERS
        assert set(model.roles) == ROLES[name]
    assert all(source.repo or source.url.startswith("https://") for source in model.sources)
    places = [source.place for source in model.sources]
    assert len(set(places)) == len(places)


def test_converted_sizes_are_parameters_in_float32():
    """Give or take buffers; a model that is not converted takes no place beside its sources."""
    for model in published().values():
        if model.converter is None:
            assert model.ready is None
        elif model.name == "mindeye2":  # without ridge, mixers and the branch of blurry images
            assert model.ready == 4 * (1_745_256_448 + 8_321_664 + 259_865_216)
        else:
            assert model.ready == 4 * model.parameters


def test_recipes_of_paper_scale_name_published_models():
    recipe = load_recipe("cc2017", {"data.root": "/data", "scale": "paper"})
    video = recipe.generate.video
    asked = {
        recipe.targets.vae: "vae", recipe.targets.clip: "clip", video.video: "video", video.keyframe: "keyframe",
        video.caption: "caption",
    }  # fmt: skip
    assert {name: published()[name].serves for name in asked} == asked


def test_addresses():
    hub = "https://hub.example/"
    vae, base = published()["sd-vae"].sources[0], published()["animatediff"].sources[0]
    assert vae.address(hub) == f"{hub}datasets/pscotti/mindeyev2/resolve/{vae.revision}/sd_image_var_autoenc.pth"
    assert base.address(hub).startswith("https://civitai.com/api/download/models/130072?")
    git = published()["git-large"].sources[1]
    assert git.address(hub) == f"{hub}microsoft/git-large-coco/resolve/main/model.safetensors"
    assert str(base.place) == f"urls/civitai.com/{base.file}"
    assert str(vae.place) == "datasets/pscotti/mindeyev2/sd_image_var_autoenc.pth"


def test_where_models_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROCLIPS_MODELS", str(tmp_path))
    assert models_home() == tmp_path
    assert ready_folder(published()["blip2"]) == tmp_path / "blip2"
    monkeypatch.delenv("NEUROCLIPS_MODELS")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(models_home()) == "/home/somebody/.cache/neuroclips/models"


@pytest.mark.parametrize("file", ["../out.pth", "/etc/passwd", "a/../../b.pth"])
def test_files_stay_in_their_folder(file):
    with pytest.raises(ValueError, match="leads out of its folder"):
        Source(role="a", repo="some/thing", file=file)
    with pytest.raises(ValueError, match="leads out of its folder"):
        Source(role="a", repo="some/thing", file="a.pth", into=file)


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "1f34"},
        {"bytes": 0},
        {"repo": None},
        {"url": "https://example.org"},
        {"hash": "1f34"},
        {"type": "space"},
    ],
)
def test_a_wrong_entry_is_refused(small, tmp_path, change):
    entries = yaml.safe_load((tmp_path / "weights.yaml").read_text())
    entries["sd-vae"]["sources"][0] |= change
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(ArtefactError, match=rf"{path}: cannot be read as a list of models"):
        read_catalogue(path)


def test_a_list_that_is_none(tmp_path):
    for text in ("- a\n", "a: [", ""):
        (tmp_path / "list.yaml").write_text(text)
        read_catalogue.cache_clear()
        with pytest.raises(ArtefactError, match="cannot be read as a list of models"):
            read_catalogue(tmp_path / "list.yaml")


def test_words():
    assert [in_words(size) for size in (None, 0, 999, 1000, 334_697_994, 15_000_000_000)] == [
        "not known", "0 B", "999 B", "1.0 kB", "334.7 MB", "15.0 GB",
    ]  # fmt: skip


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ArtefactError, match="no model 'blip'; there are sd-vae, clip-bigg"):
        catalogue.published_model("blip")
