"""The prior against dalle2-pytorch (recorded), diffusers, closed forms and posteriors that are known."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from neuroclips.decoders.prior import (
    DiffusionPrior,
    PriorNetwork,
    cosine_alphas_cumprod,
    relative_buckets,
    sampling_times,
)
from neuroclips.errors import DataError

ATOL = 1e-4  # outputs are of order 1


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recorded():
    """What the library computed; see ``make_prior_reference.py``."""
    return load_file(Path(__file__).parent / "prior_reference.safetensors")


@pytest.fixture
def network(recorded):
    network = PriorNetwork(tokens=5, width=16, depth=2, heads=4, head_width=34)
    network.load_state_dict({k.removeprefix("network."): v for k, v in recorded.items() if k.startswith("network.")})
    return network


def generators(n):
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


def test_network_equals_the_library(network, recorded):
    noisy, t, condition = (recorded[k] for k in ("noisy", "t", "condition"))
    torch.testing.assert_close(network(noisy, t, condition), recorded["x0"], atol=ATOL, rtol=0)
    drops = {k: recorded[k] for k in ("drop_condition", "drop_noisy")}
    torch.testing.assert_close(network(noisy, t, condition, **drops), recorded["x0_dropped"], atol=ATOL, rtol=0)
    assert (recorded["x0"] - recorded["x0_dropped"]).abs().amax(dim=(1, 2)).min() > 0.1


@pytest.mark.parametrize(
    ("name", "arguments"), [("sample", {}), ("sample_guided", {"cond_scale": 1.5}), ("sample_eta", {"eta": 0.5})]
)
def test_sampler_equals_the_library(network, recorded, name, arguments):
    prior = DiffusionPrior(network)
    sample = prior.sample(recorded["condition"], recorded["noise"][:, :, None], **arguments)[:, 0]
    torch.testing.assert_close(sample, recorded[name], atol=ATOL, rtol=0)


def test_buckets_and_schedule_equal_the_library(recorded):
    assert torch.equal(relative_buckets(torch.arange(514)[None])[0], recorded["buckets"])
    torch.testing.assert_close(cosine_alphas_cumprod(100).float(), recorded["alphas_cumprod"], atol=0, rtol=1e-6)


def test_schedule_is_a_cosine_until_the_clipped_end():
    time = torch.arange(1, 30, dtype=torch.float64) / 30
    closed = (
        torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
        / torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2)) ** 2
    )
    torch.testing.assert_close(cosine_alphas_cumprod(30)[:-1], closed, atol=1e-7, rtol=0)
    assert cosine_alphas_cumprod(30)[-1].item() == pytest.approx(closed[-1].item() * 1e-3, rel=1e-6)


def test_noised_is_the_forward_process(network, recorded):
    prior = DiffusionPrior(network)
    tokens, t, noise = recorded["tokens"], recorded["t"], recorded["noise"][0]
    noised = prior.noised(tokens, t, noise)
    torch.testing.assert_close(noised, recorded["noised"], atol=1e-6, rtol=0)
    for clip in range(3):
        abar = float(cosine_alphas_cumprod(100)[t[clip]])
        closed = abar**0.5 * tokens[clip] + (1 - abar) ** 0.5 * noise[clip]
        torch.testing.assert_close(noised[clip], closed, atol=1e-6, rtol=0)


def test_textbook_schedule_equals_diffusers(network, recorded):
    condition, noise = recorded["condition"], recorded["noise"]
    abar = cosine_alphas_cumprod(100)
    betas = 1 - abar / torch.cat((torch.ones(1), abar[:-1]))
    ddim = DDIMScheduler(
        trained_betas=betas.numpy(), num_train_timesteps=100, prediction_type="sample", clip_sample=False
    )
    ddim.set_timesteps(20)
    x = noise[0]
    with torch.no_grad():
        for i, t in enumerate(range(94, 0, -5)):
            x0 = network(x, torch.full((3,), t), condition)
            x = ddim.step(x0, t, x, eta=1.0, variance_noise=noise[min(i + 1, 18)]).prev_sample
    prior = DiffusionPrior(network, schedule="textbook")
    sample = prior.sample(condition, noise[:, :, None])[:, 0]
    torch.testing.assert_close(sample, x, atol=ATOL, rtol=0)
    assert (sample - recorded["sample"]).abs().max() > 0.1


def test_twenty_steps_are_nineteen_calls_down_to_4(network, recorded):
    assert sampling_times(100, 20) == [*range(94, 0, -5), -1]
    seen = []
    network.register_forward_pre_hook(lambda _, arguments: seen.append(int(arguments[1][0])))
    DiffusionPrior(network).sample(recorded["condition"], generators(3))
    assert seen == list(range(94, 0, -5))
    for steps in range(2, 101):
        assert sampling_times(100, steps) == torch.linspace(-1, 100, steps + 1)[:-1].int().tolist()[::-1]
    for steps in (1, 101):
        with pytest.raises(DataError, match=f"{steps} sampling steps; expected 2 to 100"):
            sampling_times(100, steps)


def test_paper_size_has_the_names_and_shapes_of_the_public_weights():
    with torch.device("meta"):
        state = PriorNetwork().state_dict()
    k, d, inner = 256, 1664, 3328
    block = {
        "null_kv": (2, 52), "norm_attn": (d,), "q.weight": (d, d), "kv.weight": (104, d), "out.weight": (d, d),
        "norm_out": (d,), "norm_ff": (d,), "up.weight": (13312, d), "down.weight": (d, 6656),
    }  # fmt: skip
    expected = {
        "pos": (k, d), "null_brain": (k, d), "null_image": (k, d),
        "time.0.weight": (inner, d), "time.0.bias": (inner,),
        "time.2.weight": (inner, inner), "time.2.bias": (inner,),
        "time.4.weight": (d, inner), "time.4.bias": (d,),
        "rel.weight": (32, 32), "norm": (d,), "proj.weight": (d, d),
        **{f"blocks.{i}.{name}": shape for i in range(6) for name, shape in block.items()},
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    # MindEye2 prints 259,865,216: it counts the 16 constant rotary frequencies, which are not parameters here.
    assert sum(value.numel() for value in state.values()) + 16 == 259_865_216


def test_every_parameter_learns(network, recorded):
    drops = {k: recorded[k] for k in ("drop_condition", "drop_noisy")}
    network(recorded["noisy"], recorded["t"], recorded["condition"], **drops).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_loss_drops_condition_and_noisy_tokens_independently_and_repeats_with_its_seed():
    torch.manual_seed(0)
    prior = DiffusionPrior(PriorNetwork(tokens=2, width=8, depth=1, heads=3, head_width=5))
    tokens, condition = torch.randn(2, 4000, 2, 8)
    seen = []
    prior.network.register_forward_pre_hook(lambda _, a, k: seen.append((a[1], *k.values())), with_kwargs=True)
    loss = prior.loss(tokens, condition, torch.Generator().manual_seed(3))
    t, drop_condition, drop_noisy = seen[0]
    assert t.unique().tolist() == list(range(100))
    for dropped, rate in ((drop_condition, 0.2), (drop_noisy, 0.2), (drop_condition & drop_noisy, 0.04)):
        assert dropped.float().mean().item() == pytest.approx(rate, abs=0.025)
    assert loss == prior.loss(tokens, condition, torch.Generator().manual_seed(3))
    assert loss != prior.loss(tokens, condition, torch.Generator().manual_seed(4))


def test_a_clip_depends_neither_on_its_neighbours_nor_on_its_place(network, recorded):
    prior, condition, order = DiffusionPrior(network), recorded["condition"], [2, 0]
    whole = prior.sample(condition, generators(3), samples=2)
    assert whole.shape == (3, 2, 5, 16)
    assert (whole[:, 0] - whole[:, 1]).abs().amax(dim=(1, 2)).min() > 0.1
    part = prior.sample(condition[order], [generators(3)[i] for i in order], samples=2)
    torch.testing.assert_close(part, whole[order], atol=ATOL, rtol=0)
    expected = prior.expected(condition, generators(3), samples=4)
    part = prior.expected(condition[order], [generators(3)[i] for i in order], samples=4)
    torch.testing.assert_close(part, expected[order], atol=ATOL, rtol=0)
    noisy, t = recorded["noisy"], recorded["t"]
    alone = network(noisy[1:2], t[1:2], condition[1:2])
    torch.testing.assert_close(alone, network(noisy, t, condition)[1:2], atol=1e-5, rtol=0)


def test_half_precision_stays_near_full_precision(network, recorded):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x0 = network(recorded["noisy"], recorded["t"], recorded["condition"])
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0, recorded["x0"], atol=0.06, rtol=0)


class ExactNetwork(PriorNetwork):
    """E[x0 | x_t, condition] of tokens that are normal with mean condition / 2 and a known variance."""

    def __init__(self, variance):
        super().__init__(tokens=1, width=4, depth=0, heads=1, head_width=2)
        self.variance, self.abar = variance, cosine_alphas_cumprod(100).float()

    def forward(self, noisy, t, condition, *, drop_condition=None, drop_noisy=None):
        abar, mean = self.abar[t][:, None, None], condition / 2
        gain = self.variance * abar.sqrt() / (self.variance * abar + 1 - abar)
        return mean + gain * (noisy - abar.sqrt() * mean)


@pytest.mark.parametrize("variance", [0.1, 0.5])
def test_exact_network_samples_the_posterior(variance):
    condition = torch.tensor([[[1.0, -2.0, 0.0, 3.0]], [[0.0, 2.0, 4.0, -1.0]]])
    prior = DiffusionPrior(ExactNetwork(variance), schedule="textbook")
    samples = prior.sample(condition, generators(2), samples=4000, steps=100)
    torch.testing.assert_close(samples.mean(dim=1), condition / 2, atol=0.05, rtol=0)
    torch.testing.assert_close(samples.var(dim=1), torch.full((2, 1, 4), variance), atol=0, rtol=0.2)
    torch.testing.assert_close(prior.expected(condition, generators(2), samples=9), condition / 2, atol=1e-2, rtol=0)
    library = DiffusionPrior(ExactNetwork(variance)).sample(condition, generators(2), samples=4000, steps=100)
    assert library.var(dim=1).mean() < 0.8 * samples.var(dim=1).mean()


def test_a_trained_prior_samples_the_posterior_and_needs_its_own_condition():
    """One hidden number a clip, seen through noise by every condition token: the posterior is normal, variance 1/2."""
    torch.manual_seed(0)
    generator, k, d, clips = torch.Generator().manual_seed(1), 3, 24, 32
    pattern, seen = torch.randn(2, k, d, generator=generator)

    def draw(n):
        hidden = torch.randn(n, 1, 1, generator=generator)
        observed = hidden + k**0.5 * torch.randn(n, k, 1, generator=generator)
        return observed.mean(dim=(1, 2)) / 2, hidden * pattern, observed * seen

    prior = DiffusionPrior(PriorNetwork(tokens=k, width=d, depth=2, heads=2, head_width=8), drop=0.1)
    optimizer = torch.optim.AdamW(prior.parameters(), weight_decay=0.0)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=300)
    for _ in range(300):
        _, tokens, condition = draw(256)
        optimizer.zero_grad()
        prior.loss(tokens, condition, generator).backward()
        optimizer.step()
        rates.step()

    mean, _, condition = draw(clips)

    def error_and_variance(condition):
        samples = prior.sample(condition, generators(clips), samples=32)
        hidden = (samples * pattern).sum(dim=(2, 3)) / pattern.square().sum()
        return (hidden.mean(dim=1) - mean).square().mean().sqrt().item(), hidden.var(dim=1).mean().item()

    error, variance = error_and_variance(condition)
    assert error < 0.45  # guessing zero for every clip gives 0.7
    assert variance == pytest.approx(0.5, abs=0.25)
    shuffled, _ = error_and_variance(condition.roll(1, dims=0))
    assert shuffled > 2 * error
