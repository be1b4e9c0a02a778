"""Where weights are found: shipped, published and pulled, or in a folder."""

import hashlib
import json
import re

import pytest

from neuroclips.artefacts import write_json
from neuroclips.errors import ArtefactError
from neuroclips.pretrained.catalogue import published, ready_folder
from neuroclips.pretrained.registry import refuse_absent, resolve, shipped, weights_of


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROCLIPS_MODELS", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def put(name, files):
    """A ready model of these files, as its card says."""
    folder = ready_folder(published()[name])
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(content)
    held = {file: {"bytes": len(content), "sha256": "0" * 64} for file, content in files.items()}
    (folder / "card.json").write_text(json.dumps({"files": held, "sources": []}))
    return folder


@pytest.mark.parametrize("kind", ["vae", "clip", "caption"])
def test_mini_is_shipped(kind):
    assert resolve("mini", kind) == shipped(kind)
    assert (resolve("mini", kind) / "config.json").exists()


def test_folders_of_ones_own(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert resolve(tmp_path / "mine", "vae") == tmp_path / "mine"
    with pytest.raises(
        ArtefactError, match=r"mine: no model_index\.json; expected 'mini' or a folder of video weights"
    ):
        resolve(tmp_path / "mine", "video", holds="model_index.json")
    with pytest.raises(ArtefactError, match=r"expected 'mini' or a folder of decoders weights$"):
        resolve("nowhere", "decoders", holds="basis.safetensors")


def test_a_published_model_that_is_not_here_says_how_to_get_it():
    said = (
        "sdxl-unclip: not here; `neuroclips models pull sdxl-unclip` fetches 18.0 GB (licence: none stated, "
        "CreativeML-OpenRAIL++-M), or `neuroclips models import sdxl-unclip` takes files you have"
    )
    with pytest.raises(ArtefactError, match=f"^{re.escape(said)}$"):
        resolve("sdxl-unclip", "keyframe", holds="model_index.json")


def test_a_published_model_that_is_here():
    folder = put("blip2", {"config.json": "{}"})
    assert resolve("blip2", "caption") == folder


def test_a_published_name_comes_before_a_folder_of_that_name(tmp_path):
    (tmp_path / "blip2").mkdir()
    (tmp_path / "blip2/config.json").write_text("{}")
    with pytest.raises(ArtefactError, match="blip2: not here"):
        resolve("blip2", "caption")
    assert resolve("./blip2", "caption").samefile(tmp_path / "blip2")


def test_a_published_model_of_another_kind():
    with pytest.raises(
        ArtefactError, match=r"sd-vae: weights of kind vae, where caption is wanted; blip2 or git-large"
    ):
        resolve("sd-vae", "caption")
    with pytest.raises(ArtefactError, match=r"where decoders is wanted$"):
        resolve("mindeye2", "decoders", holds="basis.safetensors")


def test_a_broken_one():
    folder = put("blip2", {"config.json": "{}", "model.safetensors": "12345"})
    (folder / "model.safetensors").write_text("123")
    with pytest.raises(
        ArtefactError, match=r"blip2: broken \(model\.safetensors has 3 bytes of 5\).*pull blip2 --again"
    ):
        resolve("blip2", "caption")
    (folder / "model.safetensors").write_text("12345")
    with pytest.raises(ArtefactError, match=r"broken \(no model_index\.json\)"):
        resolve("blip2", "caption", holds="model_index.json")
    (folder / "card.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"broken \(card\.json says too little\)"):
        resolve("blip2", "caption")


def test_weights_of_a_published_model_are_known_from_its_card(tmp_path, monkeypatch):
    """Where sizes agree; else, and in anybody's folder, files are read."""
    monkeypatch.setenv("NEUROCLIPS_MODELS", str(tmp_path))
    for folder in (tmp_path / "sd-vae", tmp_path / "deeper" / "mine"):
        (folder / "unet").mkdir(parents=True)
        (folder / "a.safetensors").write_bytes(b"abc")
        (folder / "unet" / "b.safetensors").write_bytes(b"defg")
        said = {"a.safetensors": {"bytes": 3, "sha256": "told"}, "unet/b.safetensors": {"bytes": 9, "sha256": "old"}}
        write_json(folder / "card.json", {"files": said})
    read = {name: hashlib.sha256(held).hexdigest() for name, held in
            {"a.safetensors": b"abc", "unet/b.safetensors": b"defg"}.items()}  # fmt: skip
    assert weights_of(tmp_path / "sd-vae") == read | {"a.safetensors": "told"}
    assert weights_of(tmp_path / "deeper" / "mine") == read


def test_all_absent_models_are_named_at_once():
    refuse_absent(["mini", None, "some/folder"])
    refuse_absent(["sd-vae", "sd-vae"])  # one alone is ``resolve``'s to name
    said = r"2 of 2 models .*`neuroclips models pull clip-bigg sd-vae` fetches 10\.\d GB.*--set scale=mini"
    with pytest.raises(ArtefactError, match=said):
        refuse_absent(["mini", "clip-bigg", "sd-vae", None, "clip-bigg"])
