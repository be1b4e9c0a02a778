"""The training loop beside closed forms, a killed run beside a whole one, and another library's schedule."""

import math
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from neuroclips.errors import ArtefactError, DataError, RecipeError
from neuroclips.training import TrainingSettings
from neuroclips.training.loop import train

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0], [0.0]]) + 0.7 + 0.1 * X[:, :1] ** 2
NEVER = 1e9  # seconds


def settings(**changed) -> TrainingSettings:
    usual = dict(steps=20, learning_rate=0.05, seed=3, validate_every=5, weight_decay=0.0, save_every_s=NEVER)
    return TrainingSettings(**usual | changed)


def squared(module, batch, generator):
    error = module(batch[0]) - batch[1]
    return error.square().mean(), {"absolute": error.abs().mean()}


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


class Point(nn.Module):
    """One number, so that training and validation may disagree about where it should be."""

    def __init__(self, at: float = 0.0):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at))


def towards_3(module, batch, generator):
    return (module.at - 3) ** 2, {}


def from_1(module):
    far = (module.at.item() - 1) ** 2
    return {"far": far, "near": -far}


@pytest.fixture
def interruptible():
    """SIGINT raises here even where the tests were started with it ignored (in the background)."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# ---- what is learnt ----


def test_linear_regression_reaches_least_squares():
    trained = train(linear(), squared, everything, settings=settings(steps=400, learning_rate=0.1), device="cpu")
    design = np.hstack([X.numpy(), np.ones((64, 1), np.float32)])
    solution, residual, *_ = np.linalg.lstsq(design, Y.numpy(), rcond=None)
    found = torch.cat([trained.module.weight[0], trained.module.bias]).detach().numpy()
    np.testing.assert_allclose(found, solution[:, 0], atol=1e-4)
    assert not trained.module.training
    assert (trained.steps, trained.best_step) == (400, 400)
    assert trained.curve[-1]["loss"] == pytest.approx(residual[0] / 64, rel=1e-2)  # a mean over the last 5 steps
    assert [row["step"] for row in trained.curve] == list(range(5, 401, 5))


def test_curve_holds_means_since_the_last_row():
    seen = []

    def logged(module, batch, generator):
        value, parts = squared(module, batch, generator)
        seen.append((value.item(), parts["absolute"].item()))
        return value, parts

    curve = train(linear(), logged, some, settings=settings(steps=7, accumulate=2), device="cpu").curve
    assert [row["step"] for row in curve] == [5, 7]
    for row, part in zip(curve, (seen[:10], seen[10:])):
        assert (row["loss"], row["absolute"]) == pytest.approx(tuple(np.mean(part, axis=0)))


def test_k_batches_of_a_step_equal_one_k_times_as_large():
    parts = train(
        linear(), squared, lambda n, _: (X[16 * (n % 4) :][:16], Y[16 * (n % 4) :][:16]),
        settings=settings(accumulate=4), device="cpu",
    )  # fmt: skip
    whole = train(linear(), squared, everything, settings=settings(), device="cpu")
    torch.testing.assert_close(parts.module.state_dict(), whole.module.state_dict(), atol=1e-6, rtol=0)
    assert not torch.equal(whole.module.weight, linear().weight)


def test_frozen_parameters_stay():
    module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 1))
    module[0].requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train(module, squared, some, settings=settings(weight_decay=0.5, decay_all=True, ema=0.9), device="cpu")
    after = module.state_dict()
    assert {name: torch.equal(after[name], value) for name, value in before.items()} == {
        "0.weight": True, "0.bias": True, "1.weight": False, "1.bias": False,
    }  # fmt: skip


@pytest.mark.parametrize("decay_all", [False, True])
def test_only_the_exempt_escape_decay(decay_all):
    """Without a gradient AdamW multiplies by 1 - rate * decay at every step, and does nothing else."""
    module, start = linear(), linear().state_dict()
    how = settings(weight_decay=0.2, decay_all=decay_all, validate_every=1)
    trained = train(module, lambda m, *_: (0 * (m.weight.sum() + m.bias.sum()), {}), everything, settings=how)
    shrunk = math.prod(1 - 0.2 * row["learning_rate"] for row in trained.curve)
    assert shrunk < 0.95
    torch.testing.assert_close(module.weight.cpu(), start["weight"] * shrunk)
    torch.testing.assert_close(module.bias.cpu(), start["bias"] * (shrunk if decay_all else 1.0))


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.5, 0.5), (math.inf, 1e3 * math.sqrt(5))])
def test_gradients_are_clipped(tmp_path, clip_norm, expected):
    """AdamW's first moment is a tenth of the gradient that it got at its first step."""
    file = tmp_path / "run.pt"
    how = settings(steps=1, clip_norm=clip_norm)
    train(linear(), lambda m, *_: (1e3 * m.weight.sum(), {}), everything, settings=how, checkpoint=file, device="cpu")
    moments = torch.load(file, weights_only=True)["optimizer"]["state"].values()
    assert [10 * moment["exp_avg"].norm().item() for moment in moments] == pytest.approx([expected], rel=1e-4)


def test_rates_agree_with_transformers():
    """Its schedule counts whole steps; at twice the length its odd ones are the middles of ours."""
    from transformers import get_cosine_schedule_with_warmup  # late: the two processes below import this file, too

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=8, num_training_steps=40)
    rates = []
    for _ in range(40):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    curve = train(linear(), squared, some, settings=settings(warmup=0.2, validate_every=1), device="cpu").curve
    np.testing.assert_allclose([row["learning_rate"] for row in curve], rates[1::2], rtol=1e-6)
    assert settings(warmup=0.0).rate(0.0) == 0.05
    assert settings().rate(1.0) == 0


def test_a_limit_of_time_ends_the_schedule_too():
    counts = []
    how = settings(steps=10**8, minutes=0.005, validate_every=10)
    trained = train(linear(), squared, some, settings=how, device="cpu", progress=lambda *c: counts.append(c))
    assert 1 < trained.steps < 10**6
    assert counts[-1][0] == counts[-1][1] == 10**8
    assert trained.curve[-1]["step"] == trained.steps
    assert trained.curve[-1]["learning_rate"] < 0.1 * 0.05
    assert trained.curve[-1]["seconds"] == pytest.approx(0.3, abs=0.2)


# ---- averaging, choice, stopping ----


def test_averaged_weights_follow_their_definition():
    raw, averaged = [], []

    def watched(module, batch, generator):
        raw.append(module.weight.detach().numpy().copy())
        return squared(module, batch, generator)

    def validate(module):
        averaged.append(module.weight.detach().numpy().copy())
        assert not module.training
        assert not torch.is_grad_enabled()
        return {"loss": 1.0}

    train(linear(), watched, some, settings=settings(ema=0.6, validate_every=1), validate=validate, device="cpu")
    expected = raw[0]
    for n in range(1, 20):
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * raw[n]
        np.testing.assert_allclose(averaged[n - 1], expected, rtol=1e-5)
    assert np.abs(averaged[10] - raw[11]).max() > 0.01


def test_averaging_takes_the_running_statistics_as_they_are():
    plain, averaged = (train(network(), squared, some, settings=settings(ema=ema), device="cpu") for ema in (None, 0.6))
    torch.testing.assert_close(dict(averaged.module.named_buffers()), dict(plain.module.named_buffers()))
    assert averaged.module[1].num_batches_tracked == 20
    assert not torch.equal(averaged.module[0].weight, plain.module[0].weight)


@pytest.mark.parametrize("choice", [{"choose": "far"}, {"choose": "near", "highest": True}])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_stops_early_with_the_weights_of_the_best_validation(choice, ema):
    validated = {}

    def validate(module):
        values = from_1(module)
        validated[values["far"]] = module.at.item()
        return values

    how = settings(steps=200, learning_rate=0.2, validate_every=2, patience=3, ema=ema)
    trained = train(Point(), towards_3, everything, settings=how, validate=validate, device="cpu", **choice)
    assert 0 < trained.best_step < trained.steps == trained.best_step + 3 * 2
    far = {row["step"]: row["validation_far"] for row in trained.curve}
    assert min(far, key=far.get) == trained.best_step
    assert trained.module.at.item() == validated[far[trained.best_step]] != validated[far[trained.steps]]


def test_without_patience_the_best_is_returned_after_all_steps():
    how = settings(steps=60, learning_rate=0.2)
    trained = train(Point(), towards_3, everything, settings=how, validate=from_1, choose="far", device="cpu")
    assert trained.best_step < trained.steps == 60
    assert from_1(trained.module)["far"] == min(row["validation_far"] for row in trained.curve)


@pytest.mark.parametrize("values", [{"far": math.nan}, {"other": 1.0}])
def test_validation_must_say_what_was_asked_for(values):
    with pytest.raises(DataError, match=r"step 5 gave .*expected a finite 'far'"):
        train(Point(), towards_3, everything, settings=settings(), validate=lambda _: values, choose="far")


# ---- killed and resumed ----


def comparable(trained):
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in trained.curve]
    return trained.module.state_dict(), rows, trained.best_step, trained.steps


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("how", ["crash", "Ctrl-C in a step", "Ctrl-C in validation", "crash, iterator of batches"])
@pytest.mark.parametrize("at", [3, 10, 13])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, how, at):
    """Dropout, batch norm, random batches and noise, two batches a step, averaged weights, a moving best."""
    checkpoint = tmp_path / "run.pt"
    steps, alive = [], {"now": False}

    def loss(module, batch, generator):
        noise = torch.randn(batch[1].shape, generator=generator)
        value, parts = squared(module, (batch[0], batch[1] + noise), generator)
        steps.append(1)
        if alive["now"] and len(steps) == 2 * at:
            if how.startswith("crash"):
                raise ZeroDivisionError
            if how == "Ctrl-C in a step":
                os.kill(os.getpid(), signal.SIGINT)
                parts["survived"] = torch.ones(())
        return value, {name: part for name, part in parts.items() if name != "survived"}

    def validate(module):
        if alive["now"] and how == "Ctrl-C in validation" and len(steps) >= 2 * at:
            os.kill(os.getpid(), signal.SIGINT)
        return {"error": float((module(X) - Y).square().mean() + 0.1 * torch.rand(()))}

    def run(save_every_s=NEVER, file=checkpoint):
        changed = dict(accumulate=2, ema=0.8, weight_decay=0.1, validate_every=5, save_every_s=save_every_s)
        batches = (some(n, torch.Generator().manual_seed(n)) for n in range(len(steps) - len(steps) % 2, 10**6))
        return train(
            network(), loss, batches if "iterator" in how else some, settings=settings(**changed),
            checkpoint=file, validate=validate, choose="error", device="cpu",
        )  # fmt: skip

    whole = run(file=None)
    steps.clear()
    alive["now"] = True
    with pytest.raises(ZeroDivisionError if how.startswith("crash") else KeyboardInterrupt):
        run(save_every_s=0.0 if how.startswith("crash") else NEVER)
    kept = torch.load(checkpoint, weights_only=True)["run"]
    done, best = kept["step"], [f".best-{kept['best_step']}.run.pt"] if kept["best_step"] else []
    assert {path.name for path in tmp_path.iterdir()} == {"run.pt", *best}
    assert kept["best_weights"] == {}
    if how == "Ctrl-C in validation":
        assert done == -(-at // 5) * 5
    else:
        assert done == (at if how == "Ctrl-C in a step" else at - 1)
    alive["now"] = False
    if "iterator" in how:
        steps[:] = [1] * 2 * done
    resumed = run()
    torch.testing.assert_close(comparable(resumed), comparable(whole), atol=0, rtol=0)
    assert len(steps) == 40 + (how == "crash") * 2

    def refuse(*_):
        raise AssertionError("a finished run trains on")

    changed = dict(accumulate=2, ema=0.8, weight_decay=0.1, validate_every=5)
    again = train(
        network(), refuse, some, settings=settings(**changed), checkpoint=checkpoint, validate=refuse, choose="error",
        device="cpu",
    )  # fmt: skip
    torch.testing.assert_close(comparable(again), comparable(whole), atol=0, rtol=0)


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_trained():
    torch.manual_seed(5)
    module = network()
    before = torch.get_rng_state()
    train(module, squared, some, settings=settings(), device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_is_not_finite_is_an_error_and_is_not_kept(tmp_path):
    def loss(module, batch, generator):
        value, _ = squared(module, batch[:2], generator)
        return value * batch[2], {"plain": value, "factor": batch[2]}

    def batches(number, generator):
        return *some(number, generator), math.nan if number == 6 else 1.0

    file = tmp_path / "run.pt"
    with pytest.raises(DataError, match=r"not finite at step 7: \{'plain': \d.*'factor': nan.*'loss': nan"):
        train(linear(), loss, batches, settings=settings(save_every_s=0.0), checkpoint=file, device="cpu")
    state = torch.load(file, weights_only=True)
    assert state["run"]["step"] == 6
    assert all(value.isfinite().all() for value in state["module"].values())


def checkpoint_of(module, path, **changed):
    train(module, squared, some, settings=settings(**changed), checkpoint=path, device="cpu")
    return path


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = checkpoint_of(linear(), tmp_path / "run.pt")
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint", whole[:300] + b"\0" * 300 + whole[600:]):
        path.write_bytes(damaged)
        with pytest.raises(ArtefactError, match=r"run\.pt: expected a checkpoint of a training"):
            checkpoint_of(linear(), path)
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ArtefactError, match=r"run\.pt: expected a checkpoint of a training"):
        checkpoint_of(linear(), path)


def test_a_checkpoint_of_another_training_says_what_differs(tmp_path):
    path = checkpoint_of(linear(), tmp_path / "run.pt")
    for changed, said in (
        ({"learning_rate": 0.01}, "learning_rate = 0.05; expected 0.01"),
        ({"ema": 0.9}, "ema = None; expected 0.9"),
        ({"seed": 4}, "seed = 3; expected 4"),
    ):
        with pytest.raises(ArtefactError, match=rf"run\.pt: made with {said}"):
            checkpoint_of(linear(), path, **changed)
    wide = nn.Linear(5, 2)
    with pytest.raises(ArtefactError, match=r"shape of weight = \(1, 5\); expected \(2, 5\)"):
        checkpoint_of(wide, path)
    frozen = linear()
    frozen.bias.requires_grad_(False)
    with pytest.raises(ArtefactError, match=r"bias is trained = True; expected False"):
        checkpoint_of(frozen, path)
    with pytest.raises(ArtefactError, match=r"choice by validation = None; expected \('far', False\)"):
        train(linear(), squared, some, settings=settings(), checkpoint=path, validate=from_1, choose="far")


def test_a_finished_run_may_be_prolonged(tmp_path):
    path = checkpoint_of(linear(), tmp_path / "run.pt")
    said = []
    trained = train(
        linear(), squared, some, settings=settings(steps=30), checkpoint=path, device="cpu",
        progress=lambda *c: said.append(c),
    )  # fmt: skip
    assert said[0] == (20, 30, "resuming run.pt at step 20")
    assert [row["step"] for row in trained.curve] == [5, 10, 15, 20, 25, 30]


# ---- machines ----


def test_bf16_computes_in_bf16_and_keeps_float32():
    seen = []

    def loss(module, batch, generator):
        seen.append(module(batch[0]).dtype)
        return squared(module, batch, generator)

    trained = train(linear(), loss, everything, settings=settings(steps=200, precision="bf16"), device="cpu")
    assert set(seen) == {torch.bfloat16}
    assert trained.module.weight.dtype == torch.float32
    assert trained.module(X).dtype == torch.float32  # nothing is left on the module
    assert trained.curve[-1]["loss"] < 0.05 < 1 < trained.curve[0]["loss"]


def test_what_the_machine_lacks_is_an_error():
    with pytest.raises(RecipeError, match=r"precision is 'fp16'; expected 'no' or 'bf16' on a CPU"):
        train(linear(), squared, some, settings=settings(precision="fp16"), device="cpu")
    with pytest.raises(RecipeError, match=r"device is 'tpu'; expected 'auto', 'cpu' or"):
        train(linear(), squared, some, settings=settings(), device="tpu")


@pytest.mark.parametrize("name", ["steps", "validate_every", "patience", "accumulate"])
def test_settings_out_of_range_are_errors(name):
    with pytest.raises(RecipeError, match=f"training: {name} is 0; expected more than 0"):
        settings(**{name: 0})
    with pytest.raises(RecipeError, match=r"ema is 1\.0; expected at least 0 and less than 1"):
        settings(ema=1.0)


def test_progress_counts_up_to_the_end():
    counts = []
    train(linear(), squared, some, settings=settings(), device="cpu", progress=lambda *c: counts.append(c))
    assert [done for done, *_ in counts] == list(range(21))
    assert {total for _, total, _ in counts} == {20}
    assert counts[0][2] == "training"
    assert counts[-1][2].startswith("step 20  absolute ")


TWO = """
import os, sys, torch
sys.path.insert(0, os.environ["TESTS"])
from test_loop import X, Y, linear, settings, squared, train
torch.set_num_threads(1)
rank = int(os.environ["RANK"])
checkpoint = __import__("pathlib").Path(os.environ["OUT"]) / "run.pt"
trained = train(linear(), squared, lambda n, _: (X[rank::2], Y[rank::2]), settings=settings(accumulate=2, ema=0.9),
                checkpoint=checkpoint, validate=lambda m: {"loss": rank + 1.0}, device="cpu")
assert {row["validation_loss"] for row in trained.curve} == {1.0}
torch.save(trained.module.state_dict(), checkpoint.with_name(f"weights{rank}.pt"))
torch.distributed.destroy_process_group()
"""


def test_two_processes_with_half_the_data_each_equal_one_with_all(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    where = dict(WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    where |= dict(OUT=str(tmp_path), TESTS=os.path.dirname(__file__), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO], env=os.environ | where | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    one = train(
        linear(), squared, everything, settings=settings(accumulate=2, ema=0.9), validate=lambda m: {"loss": 1.0},
        device="cpu",
    )  # fmt: skip
    for rank in range(2):
        weights = torch.load(tmp_path / f"weights{rank}.pt", weights_only=True)
        torch.testing.assert_close(weights, dict(one.module.state_dict()), atol=1e-6, rtol=0)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["made_with"]["processes"] == 2
