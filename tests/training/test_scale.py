"""Training of networks that are large for their machine: sharing out, offloading, saving, and the end of memory."""

import os
import resource
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.errors import ArtefactError, RecipeError
from neuroclips.training import TrainingSettings, loop
from neuroclips.training.checkpoint import best_file, read_best
from neuroclips.training.loop import train

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0], [0.0]]) + 0.7 + 0.1 * X[:, :1] ** 2
NEVER = 1e9  # seconds


def settings(**changed) -> TrainingSettings:
    usual = dict(steps=20, learning_rate=0.05, seed=3, validate_every=5, weight_decay=0.0, save_every_s=NEVER)
    return TrainingSettings(**usual | changed)


def squared(module, batch, generator):
    return (module(batch[0]) - batch[1]).square().mean(), {}


def everything(number, generator):
    return X, Y


def some(number, generator):
    rows = torch.randint(len(X), (16,), generator=generator)
    return X[rows], Y[rows]


def linear():
    torch.manual_seed(7)
    return nn.Linear(5, 1)


def network():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))


def three():
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3), nn.GELU(), nn.Linear(3, 1))


# What the processes run. Accelerate shares weights out on accelerators only; torch does on CPUs, too.
SHARED = """
import os, sys, torch
from pathlib import Path
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor
sys.path.insert(0, os.environ["TESTS"])
from test_scale import X, Y, settings, squared, three
from neuroclips.training import loop
from neuroclips.training.loop import train

class Sharing(Accelerator):
    def __init__(self, **given):
        super().__init__(**given)
        plugin = given["fsdp_plugin"]
        if plugin is not None:
            self.state.distributed_type, self.state.fsdp_plugin = DistributedType.FSDP, plugin
            if os.environ.get("FSDP_OFFLOAD_PARAMS") == "true":
                assert isinstance(plugin.cpu_offload, CPUOffloadPolicy)
                plugin.cpu_offload = CPUOffloadPolicy(pin_memory=False)  # pinning needs an accelerator

loop.Accelerator = Sharing
torch.set_num_threads(1)
rank, processes, out = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(os.environ["OUT"])
rows = slice(rank, None, processes)

def error(module):
    value = float((module(X) - Y).square().mean())
    assert not any(isinstance(p, DTensor) for p in module.parameters())
    return {"error": value + 1e6 * rank}

def run(name, module, die_at=None, **changed):
    calls, shares = [], []
    def loss(module, batch, generator):
        calls.append(1)
        if die_at is not None and len(calls) == die_at:
            raise ZeroDivisionError
        return squared(module, batch, generator)
    def batches(number, generator):
        numbers.append(number)
        shares.append([p.to_local().shape for p in module.parameters() if isinstance(p, DTensor)])
        return X[rows], Y[rows]
    numbers = []
    how = settings(**dict(steps=12, accumulate=2, ema=0.6, validate_every=3) | changed)
    try:
        trained = train(module, loss, batches, settings=how, checkpoint=out / f"{name}.pt", validate=error,
                        choose="error", device="cpu")
    except ZeroDivisionError:
        return
    assert not any(isinstance(p, DTensor) for p in module.parameters())
    assert all(p.requires_grad for p in module.parameters())
    rows_of_curve = [{k: v for k, v in row.items() if k != "seconds"} for row in trained.curve]
    torch.save({"weights": trained.module.state_dict(), "curve": rows_of_curve, "best": trained.best_step,
                "shares": shares, "numbers": numbers}, out / f"{name}{rank}.out")
"""
TWO = (
    SHARED
    + """
run("whole", three())
run("resumed", three(), die_at=15, save_every_s=0.0)
run("resumed", three())
run("bf16", three(), precision="bf16", ema=None)
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.scale = three(), nn.Parameter(torch.tensor(1.0))
    def forward(self, x):
        return self.scale * self.inner(x)
run("scalar", Scaled())
torch.distributed.destroy_process_group()
"""
)
ONE = (
    SHARED
    + """
loop.LARGE = 0
run("offloaded", three())
torch.distributed.destroy_process_group()
"""
)


def processes(count, script, out, **where):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    where |= dict(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    where |= dict(OUT=str(out), TESTS=os.path.dirname(__file__), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    # As ``accelerate launch --use_fsdp`` leaves them; the number of batches of a step is ours.
    where |= dict(ACCELERATE_USE_FSDP="true", FSDP_VERSION="1", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="1")
    return [
        subprocess.Popen(
            [sys.executable, "-c", script], env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    """Trainings in two processes that share the weights out, and in one that offloads them; with their files."""
    out = tmp_path_factory.mktemp("shared")
    both = [*processes(2, TWO, out), *processes(1, ONE, out, FSDP_OFFLOAD_PARAMS="true")]
    said = [process.communicate(timeout=150)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], said
    return out


def result(out, name, rank=0):
    return torch.load(out / f"{name}{rank}.out", weights_only=True)


def alone(module, **changed):
    """The same training in this process, on the clips of both; the last loss alone is a mean over other clips."""
    how = settings(**dict(steps=12, accumulate=2, ema=0.6, validate_every=3) | changed)
    return train(
        module, squared, everything, settings=how, device="cpu", choose="error",
        validate=lambda m: {"error": float((m(X) - Y).square().mean())},
    )  # fmt: skip


def test_shared_weights_train_to_those_of_one_process(shared_out):
    one = alone(three())
    for rank in range(2):
        got = result(shared_out, "whole", rank)
        torch.testing.assert_close(got["weights"], dict(one.module.state_dict()), atol=1e-5, rtol=0)
        assert got["best"] == one.best_step
        errors = [row["validation_error"] for row in got["curve"]]  # the main process's, in both
        assert errors == pytest.approx([row["validation_error"] for row in one.curve], rel=1e-4)
        assert got["numbers"] == list(range(rank, 48, 2))  # each process has batches of its own
    first, second = (result(shared_out, "whole", rank)["shares"][-1] for rank in range(2))
    assert first == [(4, 5), (4,), (2, 7), (2,), (1, 3), (1,)]
    assert second == [(3, 5), (3,), (1, 7), (1,), (0, 3), (0,)]


def test_a_killed_run_with_shared_weights_resumes_to_the_same_bits(shared_out):
    for rank in range(2):
        whole, resumed = (result(shared_out, name, rank) for name in ("whole", "resumed"))
        assert len(resumed["numbers"]) == 24 - 14
        for name in ("weights", "best") if rank else ("weights", "best", "curve"):  # the curve is the main process's
            torch.testing.assert_close(resumed[name], whole[name], atol=0, rtol=0)


def test_checkpoints_of_shared_weights_are_whole(shared_out):
    state = torch.load(shared_out / "whole.pt", weights_only=True)
    shapes = [value.shape for value in three().state_dict().values()]
    assert [value.shape for value in state["module"].values()] == shapes
    assert [value.shape for value in state["averaged"].values()] == shapes
    assert sorted(value["exp_avg"].shape for value in state["optimizer"]["state"].values()) == sorted(shapes)
    assert state["made_with"]["processes"] == 2
    best = read_best(shared_out / "whole.pt", state["run"]["best_step"], three().state_dict())
    torch.testing.assert_close(best, dict(result(shared_out, "whole")["weights"]), atol=0, rtol=0)


def test_offloaded_weights_train_to_the_same(shared_out):
    """One process. Without a GPU, weights are on the host either way: this shows that they are in their places."""
    one, got = alone(three()), result(shared_out, "offloaded")
    torch.testing.assert_close(got["weights"], dict(one.module.state_dict()), atol=1e-5, rtol=0)
    assert got["shares"][-1] == [value.shape for value in three().state_dict().values()]
    groups = torch.load(shared_out / "offloaded.pt", weights_only=True)["optimizer"]["param_groups"]
    assert all(group["fused"] for group in groups)


def test_shared_weights_train_in_bf16(shared_out):
    one, got = alone(three(), ema=None), result(shared_out, "bf16")
    assert {value.dtype for value in got["weights"].values()} == {torch.float32}
    errors, exact = ([row["validation_error"] for row in curve] for curve in (got["curve"], one.curve))
    assert errors == pytest.approx(exact, rel=0.05)
    assert errors != pytest.approx(exact, rel=1e-5)


def test_a_network_that_cannot_be_shared_out_is_copied(shared_out):
    """PerceptionNetwork has parameters without an axis."""
    both = [result(shared_out, "scalar", rank) for rank in range(2)]
    assert both[0]["shares"][-1] == []
    torch.testing.assert_close(both[0]["weights"], both[1]["weights"], atol=0, rtol=0)
    assert both[0]["weights"]["scale"] != 1


def test_launching_does_not_change_the_batches_of_a_step(monkeypatch):
    plain = alone(three(), accumulate=4).module.state_dict()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    torch.testing.assert_close(alone(three(), accumulate=4).module.state_dict(), plain, atol=0, rtol=0)


# ---- memory ----


def test_fused_adamw_agrees_with_the_plain_one(monkeypatch, tmp_path):
    def run(name):
        how = settings(steps=40, weight_decay=0.1, ema=0.9)
        return train(three(), squared, some, settings=how, device="cpu", checkpoint=tmp_path / name)

    plain = run("plain.pt")
    monkeypatch.setattr(loop, "LARGE", sum(p.numel() for p in three().parameters()))
    fused = run("fused.pt")
    torch.testing.assert_close(fused.module.state_dict(), plain.module.state_dict(), atol=1e-5, rtol=0)
    for name, expected in (("plain.pt", None), ("fused.pt", True)):
        groups = torch.load(tmp_path / name, weights_only=True)["optimizer"]["param_groups"]
        assert [group["fused"] for group in groups] == [expected] * 2


def prior_loss(module, batch, generator):
    return module.loss(*batch, generator), {}


def small_prior():
    torch.manual_seed(7)
    return DiffusionPrior(PriorNetwork(tokens=6, width=32, depth=5, heads=4, head_width=12))


def prior_batch(number, generator):
    return torch.randn(2, 3, 6, 32, generator=generator).unbind()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_activations_that_are_computed_twice_change_no_number(precision):
    kept, twice = (
        train(
            small_prior(), prior_loss, prior_batch, device="cpu",
            settings=settings(steps=6, validate_every=1, precision=precision, checkpoint_activations=again),
        )
        for again in (False, True)
    )  # fmt: skip
    torch.testing.assert_close(twice.module.state_dict(), kept.module.state_dict(), atol=0, rtol=0)
    assert [row["loss"] for row in twice.curve] == [row["loss"] for row in kept.curve]


def test_activations_that_are_computed_twice_are_not_kept():
    def kept(prior):
        """Numbers that are kept for the gradient, beside parameters."""
        own, seen = {p.data_ptr() for p in prior.parameters()}, {}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            prior_loss(prior, prior_batch(0, torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2))
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    prior = small_prior()
    all_of_them = kept(prior)
    prior.network.checkpoint_activations = True
    inputs = 5 * 3 * 13 * 32 * 4  # of five blocks: 3 clips, 13 places, 32 features, float32
    assert inputs < kept(prior) < 0.25 * all_of_them


@pytest.mark.skipif(not torch.cuda.is_available(), reason="noise is drawn on the device on CUDA only")
def test_noise_is_drawn_on_the_device_and_follows_from_the_seed():
    prior = small_prior().cuda()
    tokens, condition = (part.cuda() for part in prior_batch(0, torch.Generator().manual_seed(1)))
    one, same, other = (prior.denoised(tokens, condition, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    torch.testing.assert_close(one, same)
    assert not torch.allclose(one, other)


def cuda_is_full():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB")


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (lambda: torch.empty(2**50), "can't allocate memory"),
        (lambda: np.empty(2**50), "Unable to allocate"),
        (cuda_is_full, "CUDA out of memory"),
    ],
)
def test_the_end_of_memory_says_what_to_do_and_keeps_the_checkpoint(tmp_path, ends, said):
    file, calls = tmp_path / "run.pt", []

    def loss(module, batch, generator):
        calls.append(1)
        if len(calls) == 8:
            ends()
        return squared(module, batch, generator)

    def run():
        return train(linear(), loss, some, settings=settings(save_every_s=0.0), checkpoint=file, device="cpu")

    with pytest.raises(RecipeError, match=rf"out of memory with 6 trained .*{said}.*accumulate.*plan RECIPE.*run\.pt"):
        run()
    assert torch.load(file, weights_only=True)["run"]["step"] == 7
    calls.extend([1])
    whole = train(linear(), squared, some, settings=settings(), device="cpu")
    torch.testing.assert_close(run().module.state_dict(), whole.module.state_dict(), atol=0, rtol=0)


def test_other_faults_of_a_loss_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(linear(), lambda m, *_: (m(torch.zeros(2, 3)).sum(), {}), some, settings=settings(), device="cpu")


# ---- saving ----


def test_saving_takes_a_twentieth_of_the_time_at_most(monkeypatch, tmp_path):
    saves, write = [], loop.write_checkpoint

    def slow(path, content):
        write(path, content)
        time.sleep(0.02)
        saves.append(time.monotonic())

    monkeypatch.setattr(loop, "write_checkpoint", slow)
    how = settings(steps=10**6, minutes=0.02, save_every_s=1e-6)
    train(linear(), squared, some, settings=how, checkpoint=tmp_path / "run.pt", device="cpu")
    assert len(saves) >= 3
    assert min(np.diff(saves[:-1])) > 0.02 / 0.05  # the last one is the end's


def test_the_best_weights_have_a_file_of_their_own(tmp_path):
    file, seen = tmp_path / "run.pt", {}

    def validate(module):
        seen[len(seen)] = {name: value.clone() for name, value in module.state_dict().items()}
        return {"worse": -len(seen)}

    def run(**changed):
        how = settings(**dict(validate_every=4, save_every_s=NEVER, ema=0.5) | changed)
        return train(network(), squared, some, settings=how, checkpoint=file, validate=validate, choose="worse", **here)

    here = {"device": "cpu"}
    trained = run()
    assert {path.name for path in tmp_path.iterdir()} == {"run.pt", ".best-20.run.pt"}
    torch.testing.assert_close(read_best(file, 20, seen[4]), seen[4], atol=0, rtol=0)
    torch.testing.assert_close(dict(trained.module.state_dict()), seen[4], atol=0, rtol=0)
    assert torch.load(file, weights_only=True)["run"]["best_weights"] == {}
    best_file(file, 20).unlink()
    with pytest.raises(ArtefactError, match=r"\.best-20\.run\.pt: expected the weights of the best validation"):
        run(steps=30)


def test_a_best_that_no_checkpoint_knows_yet_replaces_none(tmp_path):
    """A run that dies after a new best goes on from a checkpoint that knows the earlier one only."""
    file = tmp_path / "run.pt"

    def validate(module):
        return {"error": float((module(X) - Y).square().mean())}

    def run(interrupt_at=None, die_at=None):
        calls = []

        def loss(module, batch, generator):
            calls.append(1)
            if len(calls) == die_at:
                raise ZeroDivisionError
            return squared(module, batch, generator)

        def progress(done, total, what):
            if done == interrupt_at:
                raise KeyboardInterrupt

        train(
            linear(), loss, some, settings=settings(steps=40, validate_every=4), checkpoint=file, validate=validate,
            choose="error", device="cpu", progress=progress,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(interrupt_at=6)
    at_4 = torch.load(best_file(file, 4), weights_only=True)
    with pytest.raises(ZeroDivisionError):
        run(die_at=9)  # in step 15
    assert torch.load(file, weights_only=True)["run"]["best_step"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {"run.pt", ".best-4.run.pt", ".best-12.run.pt"}
    torch.testing.assert_close(torch.load(best_file(file, 4), weights_only=True), at_4, atol=0, rtol=0)


@pytest.mark.parametrize("how", ["known before", "met in writing"])
def test_a_full_disk_keeps_the_earlier_checkpoint(monkeypatch, tmp_path, how):
    file = tmp_path / "run.pt"
    big = nn.Linear(5, 4096)
    first = train(big, squared, some, settings=settings(steps=3), checkpoint=file, device="cpu").module.state_dict()
    before = file.read_bytes()
    if how == "known before":
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=290_000))
        said = r"it needs 0\.00 GB, 0\.00 GB are free"
    else:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
        said = ""
    try:
        with pytest.raises(ArtefactError, match=rf"run\.pt: the checkpoint cannot be written \({said}.*is kept"):
            train(nn.Linear(5, 4096), squared, some, settings=settings(steps=6), checkpoint=file, device="cpu")
    finally:
        monkeypatch.undo()
        if how != "known before":
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]
    again = train(nn.Linear(5, 4096), squared, some, settings=settings(steps=3), checkpoint=file, device="cpu")
    torch.testing.assert_close(again.module.state_dict(), first, atol=0, rtol=0)
    assert file.read_bytes() == before  # a finished run is not written again
