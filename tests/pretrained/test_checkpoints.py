"""Checkpoints of others: weights come in, leftovers of training come in inert, and nothing is ever run."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import sys
import types
import zipfile

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from neuroclips.errors import ArtefactError
from neuroclips.pretrained.checkpoints import foreign_globals, read_checkpoint

WEIGHTS = {"a.weight": torch.arange(15.0).reshape(3, 5), "a.bias": torch.arange(3.0)}


def assert_weights(checkpoint):
    assert set(checkpoint.tensors) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert torch.equal(checkpoint.tensors[name], value)


class Harmful:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.said = function, arguments

    def __reduce__(self):
        return self.said


@pytest.fixture
def leftover(monkeypatch):
    """``leftover(module, name, base)``: a class of a training framework, gone again before anything is read."""
    made = []

    def make(module, name, *bases):
        parts = module.split(".")
        for i in range(len(parts)):
            at = ".".join(parts[: i + 1])
            if at not in sys.modules:
                sys.modules[at] = types.ModuleType(at)
                made.append(at)
        kind = type(name, bases, {"__module__": module})
        setattr(sys.modules[module], name, kind)
        return kind

    def forget():
        while made:
            sys.modules.pop(made.pop(), None)

    make.forget = forget
    yield make
    forget()


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_weights(tmp_path, suffix, zipped):
    path = tmp_path / f"weights{suffix}"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint)
    assert (checkpoint.inside, checkpoint.beside, checkpoint.inert) == ((), (), ())
    assert foreign_globals(path) == []


def test_safetensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert_weights(read_checkpoint(tmp_path / "weights.safetensors"))
    assert foreign_globals(tmp_path / "weights.safetensors") == []


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "controlnet"])
def test_entries_around_the_weights_are_opened_and_named(tmp_path, wrapper):
    of_devices = {f"module.{name}": value for name, value in WEIGHTS.items()}
    torch.save({"epoch": 3, wrapper: {**of_devices, "config": {"a": 1}}, "losses": [0.5]}, tmp_path / "last.pth")
    checkpoint = read_checkpoint(tmp_path / "last.pth")
    assert_weights(checkpoint)
    assert checkpoint.inside == (wrapper,)
    assert checkpoint.beside == ("epoch", "losses", "config")


def test_one_key_without_the_prefix_keeps_it_on_all(tmp_path):
    mixed = {"module.a": torch.zeros(2), "b": torch.zeros(2)}
    torch.save(mixed, tmp_path / "last.pth")
    assert set(read_checkpoint(tmp_path / "last.pth").tensors) == set(mixed)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_reading_maps_the_file_and_takes_no_memory(tmp_path, suffix):
    path = tmp_path / f"large{suffix}"
    large = {"w": torch.zeros(40_000_000), "last": torch.ones(1)}
    save_file(large, path) if suffix == ".safetensors" else torch.save(large, path)
    del large
    before = psutil.Process().memory_info().rss
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors["last"].item() == 1
    assert psutil.Process().memory_info().rss - before < 40e6  # of 160 MB


def leave(leftover):
    """A checkpoint as frameworks write it: objects of every kind beside the weights."""
    callback = leftover("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    scaler = leftover("deepspeed.runtime.fp16.loss_scaler", "LossScaler", object)()
    scaler.cur_scale = 1.0
    settings = leftover("pytorch_lightning.utilities.parsing", "AttributeDict", dict)(lr=0.1)
    node = leftover("omegaconf.nodes", "AnyNode")()
    node.__dict__["_content"] = {"deep": [1, 2]}
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    by_name = collections.defaultdict(dict)
    by_name["a"] = {"b": 1}
    return {
        "callbacks": {callback: {"best": pathlib.PurePosixPath("a/b")}}, "scaler": scaler, "settings": settings,
        "node": node, "optimizer": optimiser, "score": np.float64(0.5), "array": np.arange(3), "arguments":
        argparse.Namespace(a=1), "day": datetime.date(2024, 1, 1), "by_name": by_name, "state_dict": WEIGHTS,
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_leftovers_of_training_come_in_inert(tmp_path, leftover, zipped):
    path = tmp_path / "last.ckpt"
    torch.save(leave(leftover), path, _use_new_zipfile_serialization=zipped)
    leftover.forget()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    names = foreign_globals(path)
    assert {
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "pytorch_lightning.utilities.parsing.AttributeDict", "omegaconf.nodes.AnyNode", "argparse.Namespace",
        "datetime.date", "collections.defaultdict", "torch.optim.adamw.AdamW",
    } <= set(names)  # fmt: skip
    assert not {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2"} & set(names)
    checkpoint = read_checkpoint(path)
    assert_weights(checkpoint)
    assert checkpoint.inert == tuple(names)
    assert "scaler" in checkpoint.beside
    assert not any(module.startswith(("pytorch_lightning", "deepspeed", "omegaconf")) for module in sys.modules)
    with pytest.raises(ArtefactError, match=r"last\.ckpt: its pickle names .*nothing of it was executed"):
        read_checkpoint(path, allow_inert=False)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, os.remove])
def test_what_could_run_is_refused_and_not_run(tmp_path, leftover, function, protocol, zipped):
    trap, path = tmp_path / "trap", tmp_path / "last.ckpt"
    trap.touch()
    argument = {os.system: f"rm {trap}", os.remove: str(trap)}.get(function, f"__import__('os').remove({str(trap)!r})")
    content = leave(leftover) | {"optimizer": Harmful(function, *([os] if function is getattr else []), argument)}
    if function is getattr:
        content["optimizer"] = Harmful(getattr, "a", "upper")
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    leftover.forget()
    names = foreign_globals(path)
    name = f"{function.__module__}.{function.__name__}"
    assert name in names
    with pytest.raises(ArtefactError) as caught:
        read_checkpoint(path)
    said = str(caught.value)
    assert f"last.ckpt: its pickle names {name}, so it could run code" in said
    assert "nothing of it was executed" in said
    assert trap.exists()


def test_a_name_put_together_while_loading_is_refused(tmp_path):
    """The attribute is the result of a call, so that reading the opcodes does not show it."""
    opcodes = b"\x80\x04cos\ngetcwd\n)R\x8c\x06system\x93."
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", opcodes)
        archive.writestr("a/version", "3\n")
    assert foreign_globals(tmp_path / "a.ckpt") == ["?", "os.getcwd"]
    with pytest.raises(ArtefactError, match=r"names \?, os\.getcwd"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_weights_of_a_pickle_that_the_restricted_reader_does_not_know(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.ckpt", pickle_protocol=4)
    with pytest.raises(ArtefactError, match=r"a\.ckpt: .*objects that may run code when loaded, or damaged"):
        read_checkpoint(tmp_path / "a.ckpt")


def whole(path):
    torch.save(WEIGHTS, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.ckpt", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-LFS pointer .*git lfs pull"),
        ("a.pth", b"<!DOCTYPE html>\n<html>log in</html>", "a web page .* download it again"),
        ("a.pth", b"", "an empty file"),
        ("a.bin", b"Not found", "text, 'Not found'"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run `git lfs pull`"),
        ("a.safetensors", b"<!DOCTYPE html>\n<html>log in</html>", "begin with b'<!DOCTYPE html.*download it again"),
    ],
)
def test_what_a_download_leaves_behind_is_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"{name}: .*{said}"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
def test_a_file_cut_off_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_file(WEIGHTS, path) if suffix == ".safetensors" else torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtefactError, match=f"a{suffix}: .*download it again"):
        read_checkpoint(path)


def test_an_old_file_cut_off_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-40])
    with pytest.raises(ArtefactError, match=r"a\.pth: cannot be read as"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (torch.zeros(2), "holds a Tensor; expected tensors by name"),
        ({"epoch": 3}, "holds a dict with the keys epoch and no tensors"),
        ({"state_dict": {}}, "holds a dict and no tensors"),
    ],
)
def test_files_without_weights(tmp_path, content, said):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ArtefactError, match=f"a.pt: {said}"):
        read_checkpoint(tmp_path / "a.pt")


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(ArtefactError, match=r"nothing\.ckpt: no such file"):
        read_checkpoint(tmp_path / "nothing.ckpt")
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ArtefactError, match=r"a\.ckpt: an archive without data\.pkl"):
        read_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"\x80\x02nonsense")
    with pytest.raises(ArtefactError, match=r"b\.ckpt: cannot be read as a pickle"):
        foreign_globals(tmp_path / "b.ckpt")
