"""Fetching from a hub that loses connections, changes files, lies about them, or is not there."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from neuroclips.errors import ArtefactError
from neuroclips.pretrained import catalogue, download
from neuroclips.pretrained.catalogue import note_path, part_path, read_note, source_path
from neuroclips.pretrained.download import Origins, fetch, find

VAE_AT = "/datasets/pscotti/mindeyev2/resolve/abc1234/deep/vae.pth"
WORDS_AT = "/some/words/resolve/f00d/"


def quiet(done, total, what):
    pass


def sources(small, name):
    return small[name], {source.file: source for source in small[name].sources}


def everything(tmp_path):
    """Whatever was left where models are kept."""
    return {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()}


@pytest.fixture
def vae(small):
    model, files = sources(small, "sd-vae")
    return model, files["deep/vae.pth"]


def test_a_file_is_fetched_checked_and_noted(served, vae, vae_bytes, tmp_path):
    seen = []
    note = fetch(*vae, Origins(served.url), lambda *said: seen.append(said))
    assert source_path(vae[1]).read_bytes() == vae_bytes
    assert source_path(vae[1]) == tmp_path / "home/.sources/datasets/pscotti/mindeyev2/deep/vae.pth"
    assert note == read_note(vae[1])
    assert note["checked"] == "catalogue"
    assert note["sha256"] == hashlib.sha256(vae_bytes).hexdigest()
    assert [note["from"], note["revision"], note["bytes"]] == [served.url + VAE_AT, "abc1234", len(vae_bytes)]
    assert (len(vae_bytes), len(vae_bytes), "vae.pth") in seen
    assert everything(tmp_path) == {"vae.pth", "vae.pth.note.json"}
    fetch(*vae, Origins(served.url), quiet)
    assert len(served.asked) == 1  # it was here


def test_a_lost_connection_goes_on_where_it_was(served, vae, vae_bytes):
    served.cut = [4000, 2500]
    fetch(*vae, Origins(served.url), quiet)
    assert [wanted for _, wanted, _ in served.asked] == [None, "bytes=4000-", "bytes=6000-"]  # whole parts of 1000
    assert served.sent == len(vae_bytes) + 500
    assert source_path(vae[1]).read_bytes() == vae_bytes


def test_an_interrupted_pull_goes_on_in_the_next_one(served, vae, vae_bytes):
    def interrupt(done, total, what):
        if done >= 7000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(*vae, Origins(served.url), interrupt)
    assert part_path(vae[1]).stat().st_size == 7000
    assert not source_path(vae[1]).exists()
    fetch(*vae, Origins(served.url), quiet)
    assert served.asked[-1][1] == "bytes=7000-"
    assert source_path(vae[1]).read_bytes() == vae_bytes
    assert not part_path(vae[1]).exists()


def test_a_hub_that_is_gone_leaves_what_has_come(served, vae, vae_bytes):
    served.cut = [3000] + [0] * download.ATTEMPTS
    with pytest.raises(ArtefactError, match=r"no connection.*3\.0 kB that came are kept.*--mirror"):
        fetch(*vae, Origins(served.url), quiet)
    assert part_path(vae[1]).stat().st_size == 3000
    served.cut = []
    fetch(*vae, Origins(served.url), quiet)
    assert served.asked[-1][1] == "bytes=3000-"
    assert source_path(vae[1]).read_bytes() == vae_bytes


def test_nobody_there(vae, hub):
    with pytest.raises(ArtefactError, match=r"^http://127\.0\.0\.1:9/.*no connection.*--mirror"):
        fetch(*vae, Origins("http://127.0.0.1:9"), quiet)


def test_a_file_that_changed_at_its_source_begins_again(served, small):
    model, files = sources(small, "words")
    source, at = files["model.safetensors"], f"{WORDS_AT}model.safetensors"

    def interrupt(done, total, what):
        if done >= 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(model, source, Origins(served.url), interrupt)
    served.files[at] = b"8" * 4322
    fetch(model, source, Origins(served.url), quiet)
    assert [wanted for _, wanted, _ in served.asked] == [None, "bytes=2000-", None]
    assert source_path(source).read_bytes() == b"8" * 4322


def test_a_server_without_ranges(served, vae, vae_bytes):
    served.ranges, served.cut = False, [4000]
    fetch(*vae, Origins(served.url), quiet)
    assert source_path(vae[1]).read_bytes() == vae_bytes
    assert served.sent == 4000 + len(vae_bytes)


def test_a_part_that_is_whole_is_not_fetched_again(served, vae, vae_bytes):
    served.cut = [4000] + [0] * 9
    with pytest.raises(ArtefactError):
        fetch(*vae, Origins(served.url), quiet)
    part_path(vae[1]).write_bytes(vae_bytes)  # killed between the last byte and the check
    before = served.sent
    fetch(*vae, Origins(served.url), quiet)
    assert served.sent == before
    assert source_path(vae[1]).read_bytes() == vae_bytes


def test_a_file_that_is_not_what_it_should_be_is_not_kept(served, vae, vae_bytes, tmp_path):
    served.files[VAE_AT] = vae_bytes[:-1] + bytes([vae_bytes[-1] ^ 1])
    with pytest.raises(ArtefactError, match=r"sha256 \w{12}\.\.\., expected \w{12}.*was deleted, pull it again"):
        fetch(*vae, Origins(served.url), quiet)
    assert everything(tmp_path) == set()


def test_another_size_at_the_source_is_refused_before_it_is_fetched(served, vae, vae_bytes, tmp_path):
    served.files[VAE_AT] = vae_bytes * 2
    with pytest.raises(
        ArtefactError, match=rf"has {2 * len(vae_bytes)} bytes, expected {len(vae_bytes)}.*import sd-vae"
    ):
        fetch(*vae, Origins(served.url), quiet)
    assert everything(tmp_path) == set()


def test_what_the_hub_states_is_used_where_the_catalogue_knows_nothing(served, small, tmp_path):
    """The hub sends on to a store; its own answer names hash and commit. The token goes to the hub alone."""
    model, files = sources(small, "words")
    source, at = files["model.safetensors"], f"{WORDS_AT}model.safetensors"
    content = served.files.pop(at)
    served.files["/store/blob"] = content
    served.redirect[at] = served.url.replace("127.0.0.1", "localhost") + "/store/blob"
    stated = hashlib.sha256(content).hexdigest()
    served.headers[at] = {"X-Linked-Etag": f'"{stated}"', "X-Repo-Commit": "f00dfeed"}
    note = fetch(model, source, Origins(served.url, token="secret"), quiet)
    assert [note["checked"], note["revision"], note["sha256"]] == ["hub", "f00dfeed", stated]
    assert served.asked == [(at, None, "Bearer secret"), ("/store/blob", None, None)]

    source_path(source).unlink()
    note_path(source).unlink()
    served.files["/store/blob"] = b"9" * len(content)
    with pytest.raises(ArtefactError, match="expected " + stated[:12]):
        fetch(model, source, Origins(served.url), quiet)
    assert everything(tmp_path) == set()


def test_a_hub_that_states_another_hash_is_refused_before_anything_is_fetched(served, vae, tmp_path):
    served.headers[VAE_AT] = {"X-Linked-Etag": '"' + "0" * 64 + '"'}
    with pytest.raises(ArtefactError, match="the hub states sha256 000000000000"):
        fetch(*vae, Origins(served.url), quiet)
    assert everything(tmp_path) == set()


def test_an_unknown_hash_is_noted_at_first_use_and_holds_from_then_on(served, small):
    model, files = sources(small, "words")
    source = files["model.safetensors"]
    note = fetch(model, source, Origins(served.url), quiet)
    assert note["checked"] == "first use"
    content = bytearray(source_path(source).read_bytes())
    content[17] ^= 4
    source_path(source).write_bytes(content)
    with pytest.raises(ArtefactError, match=r"sha256 .* expected .*pull words --again"):
        fetch(model, source, Origins(served.url), quiet)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1f34\nsize 334697994\n"


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (POINTER, None, "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>log in</html>", None, "a web page"),
        (b"please log in", "text/html; charset=utf-8", "a web page"),
    ],
)
def test_an_impostor_is_not_kept(served, small, tmp_path, content, kind, said):
    model, files = sources(small, "words")
    at = f"{WORDS_AT}model.safetensors"
    served.files[at] = content
    if kind:
        served.headers[at] = {"Content-Type": kind}
    with pytest.raises(ArtefactError, match=said):
        fetch(model, files["model.safetensors"], Origins(served.url), quiet)
    assert everything(tmp_path) == set()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (401, "asks for a login .*HF_TOKEN"),
        (403, "asks for a login"),
        (404, "no such file of revision abc1234 .*import sd-vae"),
        (503, "HTTP 503 .*try again later"),
    ],
)
def test_answers_that_are_no_file(served, vae, tmp_path, code, said):
    served.status[VAE_AT] = code
    with pytest.raises(ArtefactError, match=said):
        fetch(*vae, Origins(served.url), quiet)
    assert everything(tmp_path) == set()


def test_an_optional_file_may_be_missing(served, small):
    model, files = sources(small, "words")
    assert fetch(model, files["extra.json"], Origins(served.url), quiet) is None
    assert fetch(model, files["extra.json"], Origins(offline=True), quiet) is None


def test_addresses_outside_the_hub_get_no_token(served, small):
    model, files = sources(small, "sd-vae")
    plain = files["deep/vae.pth"].model_copy(
        update={"repo": None, "url": f"{served.url}{VAE_AT}?type=Model", "file": "plain.pth"}
    )
    note = fetch(model, plain, Origins("http://127.0.0.1:9", token="secret"), quiet)
    assert served.asked == [(VAE_AT, None, None)]
    assert note["from"].endswith("?type=Model")
    assert source_path(plain).parent.parent.name == "urls"


LAYOUTS = [
    ".sources/datasets/pscotti/mindeyev2/deep/vae.pth",
    "datasets/pscotti/mindeyev2/deep/vae.pth",
    "pscotti/mindeyev2/deep/vae.pth",
    "mindeyev2/deep/vae.pth",
    "sd-vae/deep/vae.pth",
    "deep/vae.pth",
    "vae.pth",
    "datasets--pscotti--mindeyev2/snapshots/abc1234/deep/vae.pth",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mirror_serves_with_the_network_cut_off(vae, vae_bytes, tmp_path, no_network, layout):
    there = tmp_path / "mirror" / layout
    there.parent.mkdir(parents=True)
    there.write_bytes(vae_bytes)
    note = fetch(*vae, Origins(mirror=tmp_path / "mirror", offline=True), quiet)
    assert source_path(vae[1]).read_bytes() == vae_bytes
    assert [note["from"], note["checked"], note["revision"]] == [str(there), "catalogue", "abc1234"]
    assert there.read_bytes() == vae_bytes  # the mirror's is still the mirror's


def test_a_hub_cache_links_to_its_files(vae, vae_bytes, tmp_path, no_network):
    cache = tmp_path / "mirror/datasets--pscotti--mindeyev2"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs/1f34").write_bytes(vae_bytes)
    (cache / "snapshots/abc1234/deep").mkdir(parents=True)
    (cache / "snapshots/abc1234/deep/vae.pth").symlink_to("../../../blobs/1f34")
    fetch(*vae, Origins(mirror=tmp_path / "mirror", offline=True), quiet)
    assert not source_path(vae[1]).is_symlink()
    assert source_path(vae[1]).samefile(cache / "blobs/1f34")  # no second copy of many gigabytes


def test_a_mirror_on_another_disk_is_copied(vae, vae_bytes, tmp_path, no_network, monkeypatch):
    def other_disk(*paths):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    (tmp_path / "vae.pth").write_bytes(vae_bytes)
    fetch(*vae, Origins(mirror=tmp_path, offline=True), quiet)
    assert source_path(vae[1]).read_bytes() == vae_bytes
    assert not source_path(vae[1]).samefile(tmp_path / "vae.pth")


def test_a_damaged_mirror_is_named(vae, vae_bytes, tmp_path, no_network):
    (tmp_path / "vae.pth").write_bytes(vae_bytes[:-5])
    with pytest.raises(ArtefactError, match=rf"{tmp_path}/vae\.pth: {len(vae_bytes) - 5} bytes.*it is cut short"):
        fetch(*vae, Origins(mirror=tmp_path, offline=True), quiet)
    assert everything(tmp_path) == set()


def test_files_of_everybodys_names_are_not_taken_from_a_heap(small, tmp_path):
    model, files = sources(small, "words")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"of whom?")
        assert find(model, files[name], tmp_path) is None
        assert find(model, files[name], tmp_path, flat=True) == tmp_path / name


def test_a_mirrors_revision_is_known_from_its_cache_only(small, tmp_path, no_network):
    model, files = sources(small, "words")
    for place in ("models--some--words/snapshots/f00d", "words"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "models--some--words/snapshots/f00d/config.json").write_text("{}")
    (tmp_path / "words/model.safetensors").write_bytes(b"1")
    origins = Origins(mirror=tmp_path, offline=True)
    assert fetch(model, files["config.json"], origins, quiet)["revision"] == "f00d"
    assert fetch(model, files["model.safetensors"], origins, quiet)["revision"] is None


def test_offline_without_the_file(vae, tmp_path, no_network):
    with pytest.raises(
        ArtefactError, match=r"sd-vae: deep/vae\.pth is not here, and --offline.*mindeyev2/deep/vae\.pth"
    ):
        fetch(*vae, Origins(offline=True), quiet)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_is_really_full(served, vae):
    part = part_path(vae[1])
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(ArtefactError, match=r"the disk is full.*NEUROCLIPS_MODELS"):
        fetch(*vae, Origins(served.url), quiet)


def test_a_note_says_what_the_file_is(served, vae):
    fetch(*vae, Origins(served.url), quiet)
    assert set(json.loads(note_path(vae[1]).read_text())) == {
        "from", "revision", "bytes", "mtime_ns", "sha256", "checked",
    }  # fmt: skip
    assert catalogue.state_of(vae[0]).name == "downloaded"
