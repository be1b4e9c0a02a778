"""Every loss beside its formula in plain loops, or beside another library's function."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import beta as beta_distribution

from neuroclips.decoders.losses import (
    Mixup,
    bimixco,
    draw_mixup,
    frame_contrastive,
    info_nce,
    mix,
    mixup_targets,
    perception_loss,
    prior_loss,
    released_perception_loss,
    soft_clip,
    soft_clip_temperature,
    soft_contrastive,
)
from neuroclips.errors import DataError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MIXED = Mixup(torch.tensor([0.3, 1.0, 0.9, 0.25, 1.0]), torch.tensor([2, 1, 0, 3, 4]))  # 1, 3 and 4 are fixed points


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosine(a, b):
    a, b = np.ravel(a), np.ravel(b)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def cosines(a, b):
    return np.array([[cosine(x, y) for y in b] for x in a])


def bimixco_by_hand(p, t, weight, partner, tau, released=False):
    similarity = cosines(p, t) / tau
    n, total = len(p), 0.0
    for log_p in (log_softmax(similarity, axis=1), log_softmax(similarity, axis=0)):
        for i in range(n):
            if not (released and partner[i] == i):
                total -= weight[i] * log_p[i, i]
            total -= (1 - weight[i]) * log_p[i, partner[i]]
    return total / (2 * n)


def frames_by_hand(predicted, target, tau):
    """Equation 1's two logarithms, clip by clip and frame by frame."""
    total = 0.0
    for y, x in zip(predicted, target):
        n = len(x)
        for j in range(n):
            forward = sum(math.exp(cosine(x[j], y[k]) / tau) for k in range(n))
            backward = sum(math.exp(cosine(y[j], x[k]) / tau) for k in range(n))
            own = math.exp(cosine(x[j], y[j]) / tau)
            total -= (math.log(own / forward) + math.log(own / backward)) / (2 * n)
    return total / len(target)


def distilled_by_hand(s, t, a, tau):
    total = 0.0
    for goal, log_p in (
        (softmax(cosines(t, a) / tau, axis=1), log_softmax(cosines(s, a) / tau, axis=1)),
        (softmax(cosines(a, t) / tau, axis=1), log_softmax(cosines(a, s) / tau, axis=1)),
    ):
        for i in range(len(s)):
            total -= sum(goal[i, j] * log_p[i, j] for j in range(len(s)))
    return total / (2 * len(s))


# --- mixing


def test_drawn_mixups_have_the_share_and_the_moments_that_were_asked_for():
    n = 40_000
    mixup = draw_mixup(n, torch.Generator().manual_seed(3), beta=0.15, share=0.3)
    assert (mixup.weight >= 0).all()
    assert (mixup.weight <= 1).all()
    assert torch.equal(mixup.partner.sort().values, torch.arange(n))
    # Beta(0.15, 0.15) comes within float32 of 1 now and then: such samples count as mixed here, by their known share
    rounded = beta_distribution.sf(1 - 2**-25, 0.15, 0.15)
    mixed = mixup.weight[mixup.weight < 1].double().numpy()
    share = 0.3 * (1 - rounded)
    assert abs(len(mixed) / n - share) < 4 * math.sqrt(share * (1 - share) / n)
    mean, var = 0.5 * (1 - 2 * rounded) / (1 - rounded), 1 / (4 * (2 * 0.15 + 1))
    assert abs(mixed.mean() - mean) < 4 * math.sqrt(var / len(mixed))
    spread = (mixed - 0.5) ** 2
    expected = (var - 0.25 * rounded) / (1 - rounded)
    assert abs(spread.mean() - expected) < 4 * spread.std() / math.sqrt(len(mixed))


def test_a_mixup_is_decided_by_its_generator():
    first, again = (draw_mixup(17, torch.Generator().manual_seed(5)) for _ in range(2))
    generator = torch.Generator().manual_seed(5)
    draw_mixup(17, generator)
    second = draw_mixup(17, generator)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.partner, again.partner)
    assert not torch.equal(first.partner, second.partner)
    assert (draw_mixup(17, generator, share=0.0).weight == 1).all()


@pytest.mark.parametrize("shape", [(5,), (5, 7), (5, 3, 2, 4)])
def test_mixing_is_a_weighted_sum_of_two_samples(shape):
    x = randn(*shape, dtype=torch.float32)
    mixed = mix(x, MIXED)
    for i, (weight, partner) in enumerate([(0.3, 2), (1.0, 1), (0.9, 0), (0.25, 3), (1.0, 4)]):
        expected = weight * x[i].numpy() + (1 - weight) * x[partner].numpy()
        np.testing.assert_allclose(mixed[i].numpy(), expected, atol=1e-6)
    assert torch.equal(mixed[1], x[1])
    assert mix(x.half(), MIXED).dtype == torch.float16


# --- semantics


def test_safe_targets_sum_to_one_and_released_ones_differ_at_fixed_points_only():
    safe, released = mixup_targets(MIXED), mixup_targets(MIXED, "released")
    torch.testing.assert_close(safe.sum(1), torch.ones(5))
    fault = torch.zeros(5, 5)
    fault[1, 1], fault[3, 3], fault[4, 4] = 1.0, 0.25, 1.0  # lambda is lost there: 0, 0.75 and 0 are left
    torch.testing.assert_close(safe - released, fault)
    deranged = Mixup(MIXED.weight, torch.tensor([2, 0, 1, 4, 3]))
    assert torch.equal(mixup_targets(deranged), mixup_targets(deranged, "released"))


@pytest.mark.parametrize("fixed_points", ["safe", "released"])
@pytest.mark.parametrize("partner", [[2, 1, 0, 3, 4], [1, 2, 3, 4, 0]])
def test_bimixco_agrees_with_its_formula(fixed_points, partner):
    p, t = randn(5, 3, 8), randn(5, 3, 8, seed=1)
    mixup = Mixup(MIXED.weight.double(), torch.tensor(partner))
    for tau in (0.006, 0.5):
        ours = bimixco(p, t, mixup, tau, fixed_points)
        by_hand = bimixco_by_hand(p.numpy(), t.numpy(), mixup.weight.numpy(), partner, tau, fixed_points == "released")
        assert ours.item() == pytest.approx(by_hand, rel=1e-9)


def test_bimixco_of_unmixed_samples_is_info_nce_and_does_not_depend_on_order():
    p, t = randn(5, 8), randn(5, 8, seed=1)
    unmixed = Mixup(torch.ones(5), torch.tensor([1, 2, 3, 4, 0]))
    torch.testing.assert_close(bimixco(p, t, unmixed, 0.1), info_nce(p, t, 0.1))
    order = torch.tensor([3, 0, 4, 2, 1])
    shuffled = Mixup(MIXED.weight[order], torch.argsort(order)[MIXED.partner[order]])
    torch.testing.assert_close(bimixco(p[order], t[order], shuffled), bimixco(p, t, MIXED))


def test_info_nce_agrees_with_torch_cross_entropy_and_its_closed_forms():
    a, b = randn(5, 8), randn(5, 8, seed=1)
    logits = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2) / 0.1
    own = torch.arange(5)
    entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(info_nce(a, b), (entropy(logits, own) + entropy(logits.T, own)) / 2)
    assert info_nce(torch.ones(5, 8), torch.ones(5, 8)).item() == pytest.approx(math.log(5))
    orthogonal = torch.eye(5, 8)
    assert info_nce(orthogonal, 3 * orthogonal).item() == pytest.approx(math.log1p(4 * math.exp(-10)), rel=1e-3)
    assert info_nce(orthogonal, orthogonal, 0.004).item() == 0
    assert info_nce(a[:1], b[:1]).item() == 0


def test_soft_clip_agrees_with_its_formula_and_is_least_at_the_targets():
    p, t = randn(5, 3, 8), randn(5, 3, 8, seed=1)
    for tau in (0.004, 0.3):
        by_hand = distilled_by_hand(p.numpy(), t.numpy(), t.numpy(), tau)  # t t^T is symmetric: the same two directions
        assert soft_clip(p, t, tau).item() == pytest.approx(by_hand, rel=1e-9)
    teacher = softmax(cosines(t.numpy(), t.numpy()) / 0.3, axis=1)
    entropy = -(teacher * np.log(teacher)).sum(axis=1).mean()
    assert soft_clip(t, t, 0.3).item() == pytest.approx(entropy)
    assert soft_clip(p, t, 0.3).item() > entropy
    same = torch.ones(5, 8)
    assert soft_clip(same, same, 0.004).item() == pytest.approx(math.log(5))


def test_soft_clip_temperature_is_a_half_cosine():
    assert soft_clip_temperature(0.0) == pytest.approx(0.004)
    assert soft_clip_temperature(0.5) == pytest.approx(0.00575)
    assert soft_clip_temperature(1.0) == pytest.approx(0.0075)
    assert soft_clip_temperature(1 / 3) == pytest.approx(0.004 + 0.0035 / 4)
    with pytest.raises(DataError, match=r"progress of 1\.2; expected 0 to 1"):
        soft_clip_temperature(1.2)


def test_prior_loss_is_the_weighted_sum_of_its_parts():
    x0, tokens, text_predicted, text = randn(3, 5, 8), randn(3, 5, 8, seed=1), randn(3, 4, seed=2), randn(3, 4, seed=3)
    mse = ((x0.numpy() - tokens.numpy()) ** 2).mean()
    nce = bimixco_by_hand(text_predicted.numpy(), text.numpy(), np.ones(3), [0, 1, 2], 0.1)
    assert prior_loss(x0, tokens, text_predicted, text).item() == pytest.approx(30 * mse + nce)
    halves = prior_loss(x0, tokens, text_predicted, text, prior_weight=0.0, text_weight=0.5)
    assert halves.item() == pytest.approx(nce / 2)


# --- perception


def test_frame_contrastive_agrees_with_equation_one():
    y, x = randn(3, 6, 4, 5, 2), randn(3, 6, 4, 5, 2, seed=1) + 2
    for tau in (0.1, 0.7):
        assert frame_contrastive(y, x, tau).item() == pytest.approx(frames_by_hand(y.numpy(), x.numpy(), tau))
    moving_y, moving_x = (z.numpy() - z.numpy().mean(axis=1, keepdims=True) for z in (y, x))
    assert frame_contrastive(y, x, centre=True).item() == pytest.approx(frames_by_hand(moving_y, moving_x, 0.1))
    l1 = np.abs(y.numpy() - x.numpy()).mean()
    assert perception_loss(y, x, weight=0.25).item() == pytest.approx(l1 + 0.25 * frames_by_hand(y, x, 0.1))


@pytest.mark.parametrize("centre", [False, True])
def test_clips_do_not_meet_in_the_frame_loss(centre):
    x, y = randn(3, 6, 8), randn(3, 6, 8, seed=1)
    alone = torch.stack([frame_contrastive(y[b : b + 1], x[b : b + 1], centre=centre) for b in range(3)])
    torch.testing.assert_close(frame_contrastive(y, x, centre=centre), alone.mean())

    def gradient(y, x):
        y = y.clone().requires_grad_()
        frame_contrastive(y, x, centre=centre).backward()
        return y.grad

    other_y, other_x = y.clone(), x.clone()
    other_y[1], other_x[1] = 5 * randn(6, 8, seed=2), randn(6, 8, seed=3)
    before, after = gradient(y, x), gradient(other_y, other_x)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_order_of_clips_and_common_order_of_frames_do_not_matter_but_whose_frame_is_whose_does():
    x, y = randn(3, 6, 8), randn(3, 6, 8, seed=1)
    loss, order = frame_contrastive(y, x), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(frame_contrastive(y[[2, 0, 1]], x[[2, 0, 1]]), loss)
    torch.testing.assert_close(frame_contrastive(y[:, order], x[:, order]), loss)
    assert frame_contrastive(x, x) < frame_contrastive(x[:, order], x)


def test_distinct_frames_cost_nothing_and_a_single_frame_never_does():
    frames = torch.eye(6, 8).expand(3, 6, 8)
    assert frame_contrastive(frames, frames, 0.01).item() == 0
    expected = math.log1p(5 * math.exp(-10))
    assert frame_contrastive(frames, frames).item() == pytest.approx(expected, rel=1e-3)
    for centre in (False, True):
        assert frame_contrastive(randn(3, 1, 8), randn(3, 1, 8, seed=1), centre=centre).item() == 0


@pytest.mark.parametrize("centre", [False, True])
def test_a_still_clip_costs_log_f_and_its_equal_frames_are_not_pushed_apart(centre):
    still = randn(3, 1, 8).expand(3, 6, 8)
    predicted = randn(3, 1, 8, seed=1).repeat(1, 6, 1).requires_grad_()
    loss = frame_contrastive(predicted, still, centre=centre)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6))
    torch.testing.assert_close(predicted.grad, torch.zeros(3, 6, 8, dtype=torch.float64))


def test_frames_that_differ_are_pulled_together_where_the_film_is_still():
    still = randn(3, 1, 8).expand(3, 6, 8)
    predicted = randn(3, 6, 8, seed=1).requires_grad_()

    def spread():
        return torch.nn.functional.cosine_similarity(predicted, still, dim=2).std(dim=1)

    before, loss = spread().detach(), frame_contrastive(predicted, still)
    assert loss.item() > math.log(6)
    loss.backward()
    with torch.no_grad():
        predicted -= 0.1 * predicted.grad
    assert (spread() < before).all()
    centred = frame_contrastive(predicted, still, centre=True)
    assert centred.item() == pytest.approx(math.log(6))


def test_centring_does_not_blow_rounding_up_to_motion():
    still = randn(3, 1, 8, dtype=torch.float32).repeat(1, 6, 1)
    jitter = still + 1e-5 * randn(3, 6, 8, seed=1, dtype=torch.float32)
    moving = randn(3, 6, 8, seed=2, dtype=torch.float32)
    assert frame_contrastive(moving, jitter, centre=True).item() == pytest.approx(math.log(6), abs=0.05)
    zero = torch.zeros(3, 6, 8, requires_grad=True)
    frame_contrastive(zero, torch.zeros(3, 6, 8), centre=True).backward()
    assert torch.isfinite(zero.grad).all()


def test_equation_one_prefers_exaggerated_change_unless_weighed_down_or_centred():
    shared, own = randn(3, 1, 40), randn(3, 6, 40, seed=1)
    film, exaggerated = shared + 0.3 * own, shared + 0.6 * own
    assert frame_contrastive(exaggerated, film) < frame_contrastive(film, film)
    assert perception_loss(exaggerated, film) < perception_loss(film, film)
    for options in ({"weight": 0.1}, {"centre": True}):
        assert perception_loss(exaggerated, film, **options) > perception_loss(film, film, **options)


def test_soft_contrastive_agrees_with_its_formula_however_it_is_cut():
    s, t, a = (randn(11, 5, seed=seed) for seed in range(3))
    by_hand = distilled_by_hand(s.numpy(), t.numpy(), a.numpy(), 0.2)
    gradients = []
    for rows in (1, 4, 11, 2048):
        student = s.clone().requires_grad_()
        loss = soft_contrastive(student, t, a, rows=rows)
        loss.backward()
        gradients.append(student.grad)
        assert loss.item() == pytest.approx(by_hand)
        torch.testing.assert_close(gradients[-1], gradients[0])
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_contrastive(s[order], t[order], a[order]), soft_contrastive(s, t, a))
    same = torch.ones(11, 5)
    assert soft_contrastive(same, same, same).item() == pytest.approx(math.log(11))


def test_released_perception_loss_is_half_of_l1_and_a_tenth_of_the_distillation():
    y, x = randn(3, 6, 8), randn(3, 6, 8, seed=1)
    s, t, a = (randn(11, 5, seed=seed) for seed in range(3))
    l1, distilled = np.abs(y.numpy() - x.numpy()).mean(), distilled_by_hand(s.numpy(), t.numpy(), a.numpy(), 0.2)
    assert released_perception_loss(y, x, s, t, a).item() == pytest.approx(0.5 * l1 + 0.05 * distilled)


# --- all of them

LOSSES = {
    "bimixco": lambda p, t: bimixco(p, t, Mixup(torch.linspace(0.1, 1, len(p)), torch.arange(len(p)).flip(0))),
    "soft_clip": lambda p, t: soft_clip(p, t, 0.004),
    "info_nce": info_nce,
    "prior_loss": lambda p, t: prior_loss(p, t, p.mean(1), t.mean(1)),
    "frame_contrastive": frame_contrastive,
    "frame_contrastive, centred": lambda p, t: frame_contrastive(p, t, centre=True),
    "perception_loss": perception_loss,
    "soft_contrastive": lambda p, t: soft_contrastive(p.flatten(0, 1), t.flatten(0, 1), t.flatten(0, 1), rows=4),
    "released_perception_loss": lambda p, t: released_perception_loss(p, t, p[:, 0], t[:, 0], t[:, 1]),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@each_loss
def test_gradients_agree_with_finite_differences(loss):
    p, t = randn(3, 6, 5).requires_grad_(), randn(3, 6, 5, seed=1)
    assert torch.autograd.gradcheck(lambda p: loss(p, t), (p,), atol=1e-4, rtol=1e-3)


@each_loss
@pytest.mark.parametrize("n", [1, 3])
def test_values_and_gradients_are_finite_for_one_clip_perfect_or_empty_of_content(loss, n):
    t = randn(n, 6, 5, dtype=torch.float32)
    for p in (randn(n, 6, 5, seed=1, dtype=torch.float32), t.clone(), 1e3 * t, torch.zeros(n, 6, 5)):
        p.requires_grad_()
        value = loss(p, t)
        value.backward()
        assert value.shape == ()
        assert torch.isfinite(value)
        assert torch.isfinite(p.grad).all()


@each_loss
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_and_autocast_change_no_digit_that_the_inputs_still_have(loss, device):
    p, t = (randn(3, 6, 5, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    exact = loss(p.double(), t.double())
    with torch.autocast(device, dtype=torch.bfloat16):
        for kind in (torch.float32, torch.bfloat16):
            q = p.to(device, kind).requires_grad_()
            value = loss(q, t.to(device, kind))
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact.item(), rel=2e-3 if kind == torch.bfloat16 else 2e-5, abs=1e-4)
    value.backward()
    assert torch.isfinite(q.grad).all()


@each_loss
def test_other_shapes_are_refused(loss, unchecked_types):
    with pytest.raises(DataError, match=r"was given .*, 5\).*, 4\).*; expected"):
        loss(torch.ones(3, 6, 5), torch.ones(3, 6, 4))
    with pytest.raises(DataError, match="not empty"):
        loss(torch.ones(0, 6, 5), torch.ones(0, 6, 5))


def test_messages_say_what_came_and_what_was_expected(unchecked_types):
    with pytest.raises(
        DataError, match=r"frame_contrastive was given tensors of \(3, 6\) and \(3, 6\); .* \(B, F, \.\.\.\)"
    ):
        frame_contrastive(torch.ones(3, 6), torch.ones(3, 6))
    with pytest.raises(DataError, match="bimixco was given 3 samples, 5 weights and 5 partners"):
        bimixco(torch.ones(3, 8), torch.ones(3, 8), MIXED)
    with pytest.raises(DataError, match="mix was given 3 samples, 5 weights and 5 partners"):
        mix(torch.ones(3, 8), MIXED)
    with pytest.raises(DataError, match=r"student \(11, 5\), teacher \(11, 5\) and teacher_augmented \(11, 4\)"):
        soft_contrastive(torch.ones(11, 5), torch.ones(11, 5), torch.ones(11, 4))
