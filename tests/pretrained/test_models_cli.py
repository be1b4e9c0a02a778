"""``neuroclips models`` as users type it: terms before a pull, models that load after it, and what verify finds."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel
from typer.testing import CliRunner

from neuroclips.cli_models import models
from neuroclips.errors import ArtefactError
from neuroclips.pretrained import convert, install
from neuroclips.pretrained.catalogue import note_path, part_path, ready_folder, source_path, state_of
from neuroclips.pretrained.vae import Vae

VAE_AT = "/datasets/pscotti/mindeyev2/resolve/abc1234/deep/vae.pth"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def call(*words, answer=None):
    """Run a command; errors that ``cli.main`` would print in one line are raised."""
    done = CliRunner().invoke(models, [str(word) for word in words], input=answer)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def pull(hub, *words):
    return call("pull", *words, "--yes", "--endpoint", hub.url)


@pytest.fixture
def pulled(served, small):
    """The small VAE, ready, with its sources; returns the model and its only source."""
    pull(served, "sd-vae")
    return small["sd-vae"], small["sd-vae"].sources[0]


def flip(path, at=-9):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["list", "pull", "import", "verify"])
def test_the_help_of_every_command_has_an_example(name):
    assert f"neuroclips models {name}" in " ".join(call(name, "--help").output.split())
    assert "neuroclips models pull sd-vae" in " ".join(call("--help").output.split())


def test_list_shows_every_model_with_state_and_licence(served, small):
    shown = call("list").output
    assert "none stated, MIT" in " ".join(shown.split())
    assert "absent" in shown
    assert "mini" in shown
    told = json.loads(call("list", "--json").output)
    rows = {row["name"]: row for row in told["models"]}
    assert set(rows) == {"sd-vae", "words", "mini"}
    assert rows["mini"]["state"] == "ready"
    assert {"vae", "clip", "video", "keyframe", "caption"} <= set(rows["mini"]["serves"].split(", "))
    assert rows["words"]["bytes"] is None  # not known, and not guessed
    assert "not known" in shown


def test_states(served, small):
    model, source = small["sd-vae"], small["sd-vae"].sources[0]
    assert str(state_of(model)) == "absent"
    part_path(source).parent.mkdir(parents=True)
    part_path(source).write_bytes(b"1" * (source.bytes // 4))
    assert str(state_of(model)) == "partly (25 %)"
    source_path(source).write_bytes(served.files[VAE_AT])
    assert str(state_of(model)) == "downloaded"
    source_path(source).write_bytes(served.files[VAE_AT][:-1])
    assert str(state_of(model)) == "broken"
    source_path(source).unlink()
    pull(served, "sd-vae")
    assert str(state_of(model)) == "ready"
    weights = next(ready_folder(model).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert str(state_of(model)) == "broken"
    assert "bytes of" in " ".join(call("list").output.split())


def test_terms_come_before_the_question_and_the_question_before_the_pull(served, small):
    done = call("pull", "sd-vae", "--endpoint", served.url, answer="n\n")
    said = done.output
    order = [
        "sd-vae  220.1 kB", "datasets/pscotti/mindeyev2, revision abc1234", "none stated", "keep the notice", "MIT",
        "cite", "Fetch and use under these conditions?", "nothing was fetched",
    ]  # fmt: skip
    assert sorted(order, key=said.index) == order
    assert done.exit_code == 1
    assert served.asked == []
    assert str(state_of(small["sd-vae"])) == "absent"


def test_hashes_that_nobody_knows_are_said_before(served):
    said = call("pull", "words", "--endpoint", served.url, answer="n\n").output
    assert "not known of config.json, model.safetensors" in said
    assert "extra.json" not in said.split("hash")[1]


def test_a_pulled_model_is_the_published_one_and_found_by_name(served, small, vae_bytes, tmp_path):
    done = call("pull", "sd-vae", "--endpoint", served.url, answer="y\n")
    assert done.exit_code == 0
    (tmp_path / "other.pth").write_bytes(vae_bytes)
    original = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4,
    )  # fmt: skip
    original.load_state_dict(torch.load(tmp_path / "other.pth", weights_only=True))
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    assert np.allclose(Vae.load("sd-vae").encode(images), Vae(original).encode(images), atol=1e-5)


def test_the_card_says_what_was_made_from_what(pulled, served, vae_bytes):
    model, _ = pulled
    card = json.loads((ready_folder(model) / "card.json").read_text())
    said = card["sources"][0]
    assert said["sha256"] == hashlib.sha256(vae_bytes).hexdigest()
    assert [said["role"], said["revision"], said["checked"], said["from"]] == [
        "vae", "abc1234", "catalogue", served.url + VAE_AT,
    ]  # fmt: skip
    assert [each["name"] for each in card["licences"]] == [None, "MIT"]
    assert card["class"] == "diffusers.AutoencoderKL"  # the converter's account
    assert {"neuroclips", "torch", "diffusers", "safetensors"} <= set(card["versions"])
    on_disk = {p.relative_to(ready_folder(model)).as_posix() for p in ready_folder(model).rglob("*") if p.is_file()}
    assert set(card["files"]) == on_disk - {"card.json"}
    for name, about in card["files"].items():
        assert about["sha256"] == hashlib.sha256((ready_folder(model) / name).read_bytes()).hexdigest()
    assert not (ready_folder(model).parent / ".making" / "sd-vae").exists()


def test_files_that_need_no_conversion_take_no_second_place(served, small):
    assert "first use" in pull(served, "words").output
    folder = ready_folder(small["words"])
    assert {p.name for p in folder.iterdir()} == {"card.json", "config.json", "model.safetensors"}
    assert (folder / "model.safetensors").samefile(source_path(small["words"].sources[1]))
    assert call("verify").exit_code == 0


def test_a_role_of_several_files_reaches_the_converter_as_a_folder(hub, small, tmp_path, monkeypatch):
    """A small CLIP of a file of weights and a tokenizer of two."""
    sizes = dict(
        projection_dim=6,
        vision_config=dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                           image_size=8, patch_size=4, projection_dim=6),
        text_config=dict(hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
                         vocab_size=11, max_position_embeddings=7, projection_dim=6),
    )  # fmt: skip
    save_file(CLIPModel(CLIPConfig(**sizes)).state_dict(), tmp_path / "clip.safetensors")
    hub.files["/some/clip/resolve/main/clip.safetensors"] = (tmp_path / "clip.safetensors").read_bytes()
    hub.files |= {f"/some/clip/resolve/main/{name}": b"{}" for name in ("tokenizer.json", "vocab.json")}
    files = {"clip.safetensors": "clip", "tokenizer.json": "tokenizer", "vocab.json": "tokenizer"}
    entry = yaml.safe_load((tmp_path / "weights.yaml").read_text())["sd-vae"] | {
        "converter": "clip-bigg", "serves": "clip",
        "sources": [{"role": role, "repo": "some/clip", "file": file} for file, role in files.items()],
    }  # fmt: skip
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump({"clip-bigg": entry}))
    monkeypatch.setattr("neuroclips.pretrained.catalogue.WEIGHTS", tmp_path / "clip.yaml")
    real = convert.CONVERTERS["clip-bigg"]
    monkeypatch.setitem(convert.CONVERTERS, "clip-bigg", functools.partial(real, config=sizes))
    pull(hub, "clip-bigg")
    folder = tmp_path / "home/clip-bigg"
    assert {"model.safetensors", "tokenizer.json", "vocab.json"} <= {path.name for path in folder.iterdir()}
    assert call("verify").exit_code == 0


def test_a_second_pull_does_nothing_and_again_does_all(pulled, served):
    asked = len(served.asked)
    assert "ready in" in pull(served, "sd-vae").output
    assert len(served.asked) == asked
    pull(served, "all", "--again")
    assert [path for path, _, _ in served.asked].count(VAE_AT) == 2
    assert call("verify").exit_code == 0


def test_sources_are_dropped_when_asked(served, small):
    pull(served, "sd-vae", "--drop-sources")
    source = small["sd-vae"].sources[0]
    assert not source_path(source).exists()
    assert not note_path(source).exists()
    assert str(state_of(small["sd-vae"])) == "ready"
    assert call("verify").exit_code == 0


def test_a_mirror_is_enough_with_the_network_cut_off(small, vae_bytes, tmp_path, no_network):
    mirror = tmp_path / "mirror/words"
    mirror.mkdir(parents=True)
    (mirror / "config.json").write_text("{}")
    save_file({"a": torch.zeros(3)}, mirror / "model.safetensors")
    (mirror.parent / "vae.pth").write_bytes(vae_bytes)
    done = call("pull", "all", "--yes", "--offline", "--mirror", mirror.parent)
    assert done.exit_code == 0
    assert [str(state_of(model)) for model in small.values()] == ["ready", "ready"]
    assert call("verify", "sd-vae", "words", "--finite").exit_code == 0


def test_another_machines_models_are_a_mirror(pulled, small, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("NEUROCLIPS_MODELS", str(tmp_path / "elsewhere"))
    call("pull", "sd-vae", "--yes", "--offline", "--mirror", tmp_path / "home")
    assert ready_folder(small["sd-vae"]).is_relative_to(tmp_path / "elsewhere")
    assert str(state_of(small["sd-vae"])) == "ready"


def test_offline_and_a_mirror_that_is_not_there(small, tmp_path, no_network):
    with pytest.raises(ArtefactError, match="--offline forbids the network"):
        call("pull", "sd-vae", "--yes", "--offline")
    with pytest.raises(ArtefactError, match="no such folder"):
        call("pull", "sd-vae", "--yes", "--mirror", tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match=r"no model 'sd_vae'; there are sd-vae, words"):
        call("pull", "sd_vae", "--yes")


def test_a_disk_without_room_is_said_before_anything_is_fetched(served, small, monkeypatch):
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=100_000))
    with pytest.raises(
        ArtefactError, match=r"needs 270\.1 kB \(220\.1 kB to download, 50\.0 kB converted\), 100\.0 kB"
    ):
        pull(served, "sd-vae")
    assert served.asked == []


def test_an_interrupted_pull_keeps_what_has_come(served, small, vae_bytes, monkeypatch):
    real = install.fetch

    def interrupted(model, source, origins, report):
        def stop(done, total, what):
            if done >= 9000:
                raise KeyboardInterrupt

        return real(model, source, origins, stop)

    monkeypatch.setattr(install, "fetch", interrupted)
    done = call("pull", "sd-vae", "--yes", "--endpoint", served.url)
    assert done.exit_code == 130
    assert "goes on from there" in done.output
    assert part_path(small["sd-vae"].sources[0]).stat().st_size == 9000
    monkeypatch.setattr(install, "fetch", real)
    pull(served, "sd-vae")
    assert served.asked[-1][1] == "bytes=9000-"
    assert str(state_of(small["sd-vae"])) == "ready"


def test_one_process_at_a_time(served, small, tmp_path):
    (tmp_path / "home").mkdir()
    with FileLock(tmp_path / "home/.sd-vae.lock"), pytest.raises(ArtefactError, match="another process works on it"):
        pull(served, "sd-vae")
    pull(served, "sd-vae")


def test_a_failed_conversion_leaves_what_was_there(pulled, served, monkeypatch):
    model, _ = pulled
    before = (ready_folder(model) / "card.json").read_bytes()

    def fails(sources, out):
        (out / "half").mkdir(parents=True)
        raise ArtefactError("a layout of another world")

    monkeypatch.setitem(convert.CONVERTERS, "sd-vae", fails)
    with pytest.raises(ArtefactError, match="another world"):
        pull(served, "sd-vae", "--again")
    assert (ready_folder(model) / "card.json").read_bytes() == before
    assert call("verify").exit_code == 0


@pytest.mark.parametrize("how", ["vae=", "", "folder", "role of folder"])
def test_import_takes_files_of_the_users(small, vae_bytes, tmp_path, no_network, how):
    mine = tmp_path / "mine" / ("vae.pth" if "folder" in how else "of-another-name.pth")
    mine.parent.mkdir()
    mine.write_bytes(vae_bytes)
    given = {"folder": mine.parent, "role of folder": f"vae={mine.parent}"}.get(how, f"{how}{mine}")
    assert call("import", "sd-vae", given).exit_code == 0
    card = json.loads((ready_folder(small["sd-vae"]) / "card.json").read_text())
    assert [card["sources"][0][name] for name in ("from", "checked", "revision")] == [str(mine), "catalogue", "abc1234"]
    assert mine.read_bytes() == vae_bytes
    assert call("verify", "sd-vae").exit_code == 0


def test_import_of_another_version_is_refused_or_said(small, tmp_path, no_network):
    torch.manual_seed(1)
    other = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1, block_out_channels=[8, 16],
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=4,
    )  # fmt: skip
    torch.save(other.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(ArtefactError, match=r"mine\.pth: (sha256|\d+ bytes)"):
        call("import", "sd-vae", tmp_path / "mine.pth")
    assert str(state_of(small["sd-vae"])) == "absent"
    call("import", "sd-vae", tmp_path / "mine.pth", "--any-version")
    done = call("verify", "sd-vae")
    assert done.exit_code == 0
    assert "as --any-version allowed" in done.output
    card = json.loads((ready_folder(small["sd-vae"]) / "card.json").read_text())
    assert card["any_version"]
    assert card["sources"][0]["checked"] == "given by the user"


def test_import_says_what_is_missing(small, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words/config.json").write_text("{}")
    with pytest.raises(ArtefactError, match=r"words: missing folder \(model\.safetensors\); give each as ROLE=PATH"):
        call("import", "words", tmp_path / "words")
    with pytest.raises(ArtefactError, match=r"no such file or folder; words is made from folder \(config\.json\)"):
        call("import", "words", tmp_path / "nothing")
    with pytest.raises(ArtefactError, match="nothing that words is made from"):
        call("import", "words", tmp_path / "weights.yaml")


def test_verify_of_nothing(small):
    done = call("verify")
    assert done.exit_code == 0
    assert "no model in" in done.output
    with pytest.raises(ArtefactError, match="sd-vae: not here; `neuroclips models pull sd-vae`"):
        call("verify", "sd-vae")


def found(*words):
    done = call("verify", *words)
    assert done.exit_code == 1
    return done.output


def test_verify_finds_nothing_wrong_with_what_is_right(pulled):
    done = call("verify", "--finite")
    assert done.exit_code == 0
    assert "every byte as it should be" in done.output


def test_verify_finds_a_flipped_byte_of_a_source(pulled):
    flip(source_path(pulled[1]))
    assert all(word in found() for word in ("vae.pth: sha256", "expected", "`neuroclips models pull sd-vae --again`"))


def test_verify_finds_a_flipped_byte_of_a_source_without_a_known_hash(served, small):
    pull(served, "words")
    shutil.rmtree(ready_folder(small["words"]))  # which shares its bytes
    flip(source_path(small["words"].sources[1]))
    assert "when it was downloaded; damaged" in found()


def test_verify_finds_a_flipped_byte_of_a_ready_model(pulled):
    flip(next(ready_folder(pulled[0]).glob("*.safetensors")))
    assert all(word in found("sd-vae") for word in ("when it was made; altered", "--again"))


def test_verify_finds_a_truncated_file(pulled):
    for path in (source_path(pulled[1]), next(ready_folder(pulled[0]).glob("*.safetensors"))):
        path.write_bytes(path.read_bytes()[:-100])
    said = found()
    assert "it is cut short" in said
    assert "; cut short" in said


def test_verify_finds_a_missing_file(pulled):
    (ready_folder(pulled[0]) / "config.json").unlink()
    assert "config.json: missing" in found()
    (ready_folder(pulled[0]) / "card.json").unlink()
    assert "no card that says what it holds" in found()


def test_verify_finds_a_wrong_revision(served, small):
    """Of files without a known hash, the revision is what tells versions apart."""
    served.headers["/some/words/resolve/f00d/config.json"] = {"X-Repo-Commit": "0ther"}
    pull(served, "words")
    said = found()
    assert "made from config.json of revision 0ther, not f00d" in said
    assert "config.json: of revision 0ther, expected f00d" in said


def test_verify_finds_a_model_made_from_another_version(pulled, small, tmp_path, monkeypatch):
    path = tmp_path / "newer.yaml"
    path.write_text((tmp_path / "weights.yaml").read_text().replace(pulled[1].sha256, "0a" * 32))
    monkeypatch.setattr("neuroclips.pretrained.catalogue.WEIGHTS", path)
    assert "made from another deep/vae.pth" in found()


class _Harmful:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_verify_names_what_a_pickle_would_run_and_runs_nothing(served, small, tmp_path):
    """The marker is what the pickle would leave; that it can is seen by loading it without care."""
    marker, source = tmp_path / "marker", small["sd-vae"].sources[0]
    source_path(source).parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(3), "then": _Harmful(marker)}, source_path(source))
    size, sha256 = source_path(source).stat().st_size, hashlib.sha256(source_path(source).read_bytes()).hexdigest()
    path = tmp_path / "weights.yaml"
    text = path.read_text().replace(source.sha256, sha256).replace(f"bytes: {source.bytes}", f"bytes: {size}")
    (tmp_path / "harmful.yaml").write_text(text)  # even if the catalogue vouched for it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neuroclips.pretrained.catalogue.WEIGHTS", tmp_path / "harmful.yaml")
        said = found()
        with pytest.raises(ArtefactError, match="system"):
            call("pull", "sd-vae", "--yes", "--offline")
    assert "its pickle names posix.system, which could run code; nothing of it was executed" in said
    assert not marker.exists()
    torch.load(source_path(source), weights_only=False)
    assert marker.exists()


def test_verify_finds_a_pickle_in_a_ready_folder(pulled, tmp_path):
    torch.save({"then": _Harmful(tmp_path / "marker")}, ready_folder(pulled[0]) / "pytorch_model.bin")
    assert "a pickle that does not belong here; remove it" in found()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>"])
def test_verify_finds_impostors(small, content):
    source = small["words"].sources[1]
    source_path(source).parent.mkdir(parents=True)
    source_path(source).write_bytes(content)
    said = found()
    assert "not the file itself" in said
    assert "config.json" not in said.split("missing")[0].split("\n")[0]
    assert "missing; `neuroclips models pull words` fetches the rest" in said


def test_verify_finds_numbers_that_are_none_when_asked(pulled):
    weights = next(ready_folder(pulled[0]).glob("*.safetensors"))
    tensors = load_file(weights)
    name = sorted(tensors)[3]
    tensors[name].view(-1)[-1] = torch.nan
    save_file(tensors, weights)
    card = ready_folder(pulled[0]) / "card.json"
    about = json.loads(card.read_text())
    about["files"][weights.name] = {
        "bytes": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }  # fmt: skip
    card.write_text(json.dumps(about))
    assert call("verify").exit_code == 0
    assert f"{name} holds values that are not finite" in found("--finite")


def test_the_command_line_is_quick_to_start():
    """Neither torch nor requests is imported for --help."""
    code = (
        "import sys, neuroclips.cli_models\n"
        "assert not {'torch', 'diffusers', 'transformers', 'requests', 'huggingface_hub'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
