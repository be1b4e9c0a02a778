"""Objectives beside their formulas in numpy, draws beside what chance says of them; planted maps are learnt."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from scipy.stats import chi2_contingency

from neuroclips.decoders.losses import draw_mixup, perception_loss, released_perception_loss
from neuroclips.decoders.perception import PerceptionNetwork
from neuroclips.decoders.prior import DiffusionPrior, PriorNetwork
from neuroclips.decoders.semantics import SemanticsNetwork
from neuroclips.decoders.text import TextProjector
from neuroclips.errors import DataError
from neuroclips.training import TrainingSettings
from neuroclips.training.loop import train
from neuroclips.training.objectives import PerceptionObjective, PriorObjective, SemanticsObjective, epoch_length
from neuroclips.training.switches import Switches, switches

B, R, V, M, K, D, E, F = 11, 2, 7, 6, 3, 4, 5, 3
LATENT, P = (5, 4, 2), 2 * 1  # the grid has 2 rows
PRESETS = ["corrected", "paper", "released"]
REPEATS, KEYFRAMES = np.arange(R), np.arange(M)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


RESPONSES, TOKENS, TEXT = randn(B, R, V), randn(B, M, K, D, seed=1), randn(B, E, seed=2)
CONDITIONS, LATENTS = randn(B, R, K, D, seed=3), randn(B, F, *LATENT, seed=4)
TEACHER = (randn(B, F, P, 512, seed=5), randn(B, F, P, 512, seed=6))


def projector():
    torch.manual_seed(8)
    return TextProjector(D, E)


def semantics_network(voxels=V, **options):
    torch.manual_seed(1)
    sizes = dict(tokens=K, token_width=D, width=6, blocks=1, hidden=5, dropout=0.0)
    return SemanticsNetwork(voxels, **sizes | options)


def prior_network():
    torch.manual_seed(2)
    return DiffusionPrior(PriorNetwork(tokens=K, width=D, depth=1, heads=2, head_width=6))


def perception_network(voxels=V, **options):
    torch.manual_seed(3)
    sizes = dict(
        frames=F, latent=LATENT, width=6, blocks=0, grid=2, grid_channels=4, channels=(6,), rank=5, dropout=0.0,
        grid_dropout=0.0,
    )  # fmt: skip
    return PerceptionNetwork(voxels, **sizes | options)


def semantics(s, **options):
    usual = dict(switches=s, steps=30, batch=5, text=TEXT, projector=projector())
    return SemanticsObjective(RESPONSES, TOKENS, **usual | options)


def prior(s, **options):
    return PriorObjective(CONDITIONS, TOKENS, switches=s, batch=5, **dict(text=TEXT, projector=projector()) | options)


def perception(s, **options):
    return PerceptionObjective(RESPONSES, LATENTS, switches=s, batch=5, **dict(teacher=TEACHER) | options)


# ---- formulas, in numpy ----


def unit(x):
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def contrast(p, t, goal, temperature):
    logits = unit(p) @ unit(t).T / temperature
    rows, columns = (goal * log_softmax(logits, 1)).sum(1), (goal * log_softmax(logits.T, 1)).sum(1)
    return -(rows.mean() + columns.mean()) / 2


def text_cost(predicted, text):
    seen = np.asarray(predicted, np.float64).mean(axis=1) @ projector().weight.detach().numpy().T
    return contrast(seen, text, np.eye(len(text)), 0.1)


def squared(a, b):
    return np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean()


def predicted_tokens(x):
    with torch.no_grad():
        return semantics_network().eval()(torch.as_tensor(x, dtype=torch.float32)).tokens.numpy()


VARIANCE = TOKENS.reshape(B * M, K, D).astype(np.float64).var(axis=0).mean()


def test_semantics_loss_of_mixed_responses_is_its_formula():
    s = switches("corrected", text_weight=0.7, mse_weight=0.4, mixup_share_of_training=0.5)
    objective = semantics(s)
    batch = objective.batches(4, seeded())
    loss, parts = objective.loss(semantics_network().eval(), batch, seeded(5))
    mixup = draw_mixup(len(batch.tokens), seeded(5))
    weight, partner = mixup.weight.double().numpy(), mixup.partner.numpy()
    assert (weight < 1).sum() >= 2
    x, t = batch.responses.double().numpy(), batch.tokens.double().numpy()
    mixed = weight[:, None] * x + (1 - weight)[:, None] * x[partner]
    q = np.diag(weight)
    for i, j in enumerate(partner):
        q[i, j] += 1 - weight[i]
    goal = weight[:, None, None] * t + (1 - weight)[:, None, None] * t[partner]
    p = predicted_tokens(mixed)
    logits = unit(p) @ unit(t).T / 0.006  # Q is not symmetric: its columns go with the columns
    expected = {
        "bimixco": -((q * log_softmax(logits, 1)).sum(1).mean() + (q * log_softmax(logits, 0)).sum(0).mean()) / 2,
        "text": text_cost(p, batch.text.numpy()),
        "mse": squared(p, goal) / VARIANCE,
    }
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-4)
    total = expected["bimixco"] + 0.7 * expected["text"] + 0.4 * expected["mse"]
    assert loss.item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize(("number", "progress"), [(15, 0.0), (24, 0.6), (30, 1.0), (31, 1.0)])
def test_semantics_loss_after_the_mixup_is_soft_and_warms_up(number, progress):
    objective = semantics(switches("corrected", mixup_share_of_training=0.5, text_weight=0.7))
    batch = objective.batches(number, seeded())
    loss, parts = objective.loss(semantics_network().eval(), batch, seeded(5))
    p, t = predicted_tokens(batch.responses), batch.tokens.numpy()
    temperature = 0.004 + (0.0075 - 0.004) * math.sin(math.pi * progress / 2) ** 2
    goal = softmax(unit(t) @ unit(t).T / temperature, axis=1)
    expected = contrast(p, t, goal, temperature) + 0.7 * text_cost(p, batch.text.numpy()) + squared(p, t) / VARIANCE
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert set(parts) == {"soft_clip", "text", "mse"}


def test_presets_mix_for_their_share_of_the_training():
    mixed = {p: [semantics(switches(p)).batches(n, seeded()).softened is None for n in range(33)] for p in PRESETS}
    assert mixed["corrected"] == [True] * 10 + [False] * 23
    assert all(mixed["paper"])
    assert all(mixed["released"])


def test_without_text_and_error_only_contrast_is_left():
    objective = semantics(switches("paper"), text=None, projector=None)
    loss, parts = objective.loss(semantics_network(), objective.batches(0, seeded()), seeded())
    assert list(parts) == ["bimixco"]
    assert loss is parts["bimixco"]
    assert "mse" in semantics(switches("paper", mse_weight=2.0)).loss(
        semantics_network(), objective.batches(0, seeded()), seeded()
    )[1]  # fmt: skip


def test_codes_skip_the_subjects_layer():
    codes, network = randn(B, R, 6), semantics_network()
    objective = SemanticsObjective(codes, TOKENS, switches=switches("paper"), steps=9, batch=B, codes=True)
    objective.loss(network, objective.batches(0, seeded()), seeded())[0].backward()
    assert network.input.weight.grad is None
    assert network.head.weight.grad.abs().max() > 0
    network = perception_network()
    objective = PerceptionObjective(codes, LATENTS, switches=switches("paper"), batch=B, codes=True)
    objective.loss(network, objective.batches(0, seeded()), seeded())[0].backward()
    assert network.input.weight.grad is None
    assert network.to_grid[0].weight.grad.abs().max() > 0


def test_text_projector_is_copied_and_frozen():
    judge = projector()
    objective = semantics(switches("paper"), projector=judge)
    objective.loss(semantics_network(), objective.batches(0, seeded()), seeded())[0].backward()
    assert judge.weight.grad is None
    assert judge.weight.requires_grad
    assert objective.projector.weight.grad is None


def test_prior_loss_is_its_formula():
    objective = prior(switches("corrected", prior_weight=7.0, text_weight_prior=0.3))
    batch, module = objective.batches(1, seeded()), prior_network().eval()
    loss, parts = objective.loss(module, batch, seeded(4))
    generator, n = seeded(4), len(batch.tokens)
    t = torch.randint(100, (n,), generator=generator)
    drops = torch.rand(2, n, generator=generator) < 0.2
    noise = torch.randn(batch.tokens.shape, generator=generator)
    abar = module.abar[t][:, None, None]
    noisy = abar.sqrt() * batch.tokens + (1 - abar).sqrt() * noise
    with torch.no_grad():
        x0 = module.network(noisy, t, batch.condition, drop_condition=drops[0], drop_noisy=drops[1]).numpy()
    mse, text = squared(x0, batch.tokens.numpy()), text_cost(x0, batch.text.numpy())
    assert loss.item() == pytest.approx(7 * mse + 0.3 * text, rel=1e-4)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx({"mse": mse, "text": text}, rel=1e-4)
    alone, parts = prior(switches("paper"), text=None, projector=None).loss(module, batch, seeded(4))
    assert alone.item() == pytest.approx(30 * mse, rel=1e-4)
    assert list(parts) == ["mse"]


@pytest.mark.parametrize("preset", PRESETS)
def test_perception_loss_is_its_formula(preset):
    """The functions called here have formulas of their own in the tests of losses."""
    objective = perception(switches(preset))
    batch, network = objective.batches(1, seeded()), perception_network(maps=preset == "released").eval()
    with torch.no_grad():
        loss, parts = objective.loss(network, batch, seeded())
        out = network(batch.responses)
        clean, augmented = (torch.from_numpy(m[_ids(batch.latents, LATENTS)]).reshape(-1, 512) for m in TEACHER)
        expected = {
            "corrected": lambda: perception_loss(out.latents, batch.latents, weight=1.0, centre=True),
            "paper": lambda: perception_loss(out.latents, batch.latents),
            "released": lambda: released_perception_loss(
                out.latents, batch.latents, out.maps.reshape(-1, 512), clean, augmented
            ),
        }[preset]()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parts["l1"].item() == pytest.approx(np.abs(out.latents.numpy() - batch.latents.numpy()).mean(), rel=1e-5)


# ---- draws ----


def _ids(drawn, of):
    """Rows of ``of`` that a batch's tensor holds."""
    return [next(b for b in range(len(of)) if np.array_equal(of[b], row)) for row in drawn.numpy()]


def labelled(clips=B, repeats=REPEATS, keyframes=KEYFRAMES, **options):
    """Arrays whose values name their clip and repeat, their clip and keyframe: which is drawn can be read off."""
    clip, settings = np.arange(clips, dtype=np.float32), dict(switches=switches("paper"), steps=100, batch=5)
    responses = np.broadcast_to(np.stack(np.broadcast_arrays(clip[:, None], repeats), -1), (clips, len(repeats), 2))
    tokens = np.stack(np.broadcast_arrays(clip[:, None], keyframes), -1)[:, :, None]
    return SemanticsObjective(responses.astype(np.float32), tokens.astype(np.float32), **settings | options)


def drawn(objective, numbers):
    """(draws, 4): clip and repeat of the response, clip and keyframe of the tokens."""
    batches = [objective.batches(n, seeded(1000 + n)) for n in numbers]
    return np.concatenate([np.hstack([b.responses.numpy(), b.tokens[:, 0].numpy()]) for b in batches]).astype(int)


def test_every_epoch_visits_every_clip_once():
    assert (epoch_length(11, 5), epoch_length(10, 5), epoch_length(3, 5)) == (3, 2, 1)
    objective = labelled()
    orders = [drawn(objective, range(3 * epoch, 3 * epoch + 3))[:, 0] for epoch in range(4)]
    assert all(sorted(order) == list(range(B)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert [len(objective.batches(n, seeded()).responses) for n in range(3)] == [4, 4, 3]
    every = drawn(objective, range(6))
    np.testing.assert_array_equal(every[:, 0], every[:, 2])  # responses and tokens are of the same clip
    np.testing.assert_array_equal(drawn(objective, [4]), drawn(labelled(), [4]))  # nothing but the number counts
    others = drawn(labelled(seed=1), range(3))[:, 0]
    assert sorted(others) == list(range(B))
    assert not np.array_equal(others, orders[0])


def test_steps_are_those_of_the_paper_and_the_code():
    for preset, steps in (("paper", (540, 16_200)), ("released", (180, 8_640))):
        s = switches(preset)
        found = (
            epoch_length(4320, s.semantics_batch) * s.semantics_epochs,
            epoch_length(4320, s.perception_batch) * s.perception_epochs,
        )
        assert found == steps


def test_random_repeats_and_keyframes_know_nothing_of_each_other():
    many = drawn(labelled(clips=60, batch=30), range(400))
    table = np.zeros((R, M), int)
    np.add.at(table, (many[:, 1], many[:, 3]), 1)
    assert table.sum() == 12_000
    assert np.abs(table / 12_000 - 1 / (R * M)).max() < 5 * math.sqrt(1 / (R * M) / 12_000)
    assert chi2_contingency(table).pvalue > 1e-4


def test_alternating_ties_the_repeat_to_the_keyframe():
    many = drawn(labelled(switches=switches("released")), range(12))
    epoch = np.arange(len(many)) // B
    np.testing.assert_array_equal(many[:, 1], epoch % 2)
    np.testing.assert_array_equal(many[:, 3], 2 + epoch % 2)
    few = drawn(labelled(switches=switches("released"), keyframes=np.array([8, 9])), range(12))
    np.testing.assert_array_equal(few[:, 3], 8 + epoch % 2)
    alone = drawn(labelled(switches=switches("released"), keyframes=np.array([8]), repeats=np.array([4])), range(12))
    assert set(alone[:, 1]) == {4}
    assert set(alone[:, 3]) == {8}


@pytest.mark.parametrize(("keyframe", "same"), [("random", True), ("alternate", False)])
def test_captions_are_of_the_drawn_keyframe_or_of_frame_2(keyframe, same):
    text = np.broadcast_to(KEYFRAMES[None, :, None], (B, M, E)).astype(np.float32)
    objective = labelled(switches=switches("paper", keyframe=keyframe), text=text, projector=TextProjector(2, E))
    batches = [objective.batches(n, seeded(n)) for n in range(6)]
    caption = np.concatenate([batch.text[:, 0].numpy() for batch in batches])
    frame = np.concatenate([batch.tokens[:, 0, 1].numpy() for batch in batches])
    np.testing.assert_array_equal(caption, frame if same else np.full(2 * B, 2))


@pytest.mark.parametrize("changes", [{}, {"keyframe": "alternate"}, {"repeats": "mean"}])
def test_missing_repeats_are_never_drawn(changes):
    present = np.random.default_rng(3).random((B, 3)) < 0.5
    present[np.arange(B), np.arange(B) % 3] = True
    assert (present.sum(axis=1) < 3).sum() > 5
    responses = np.where(present[..., None], randn(B, 3, V), np.nan).astype(np.float32)
    conditions = np.where(present[..., None, None], randn(B, 3, K, D), np.nan).astype(np.float32)
    usual = dict(switches=switches("paper", **changes), batch=5, present=present)
    objectives = (
        SemanticsObjective(responses, TOKENS, steps=9, **usual),
        PriorObjective(conditions, TOKENS, **usual),
        PerceptionObjective(responses, LATENTS, **usual),
    )
    for objective in objectives:
        seen = {tuple(row.ravel()) for n in range(60) for row in objective.batches(n, seeded(n))[0].numpy()}
        assert all(np.isfinite(row).all() for row in seen)
        if changes == {}:
            assert len(seen) == present.sum()  # and every other one is


def test_means_are_of_the_repeats_that_exist():
    present = np.ones((B, R), bool)
    present[4, 1] = False
    objective = semantics(switches("paper", repeats="mean"), present=present, batch=B)
    x = objective.batches(0, seeded()).responses.numpy()
    expected = RESPONSES.mean(axis=1)
    expected[4] = RESPONSES[4, 0]
    np.testing.assert_allclose(sorted(x.tolist()), sorted(expected.tolist()), rtol=1e-5)


def test_memory_maps_of_half_precision_are_read_by_the_row(tmp_path):
    np.save(tmp_path / "tokens.npy", TOKENS.astype(np.float16))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    objective = SemanticsObjective(RESPONSES, mapped, switches=switches("corrected"), steps=9, batch=5)
    assert isinstance(objective.tokens, np.memmap)
    batch = objective.batches(2, seeded())
    assert batch.tokens.dtype == torch.float32
    torch.testing.assert_close(
        batch.tokens, semantics(switches("corrected")).batches(2, seeded()).tokens, atol=1e-2, rtol=0
    )
    assert objective.variance == pytest.approx(VARIANCE, rel=1e-2)


# ---- switches ----


CHANGED = {
    "keyframe": "alternate", "repeats": "mean", "text_weight": 0.25, "text_weight_prior": 0.5, "prior_weight": 20.0,
    "mse_weight": 0.0, "mixup_share_of_training": 1.0, "mixup_fixed_points": "released", "perception_loss": "paper",
    "perception_contrast_weight": 0.1,
}  # fmt: skip


def observed(s):
    """Losses of a few batches, early and late."""
    found = []
    for objective, module in (
        (semantics(s), semantics_network()),
        (prior(s), prior_network()),
        (perception(s), perception_network(maps=True)),
    ):
        for number in (0, 1, 3, 4, 25):
            batch = objective.batches(number, seeded(number))
            found.append(objective.loss(module.eval(), batch, seeded(50 + number))[0].item())
    return np.array(found)


def test_every_switch_changes_a_loss_or_is_said_to_be_the_estimators():
    usual = observed(Switches())
    np.testing.assert_array_equal(usual, observed(Switches()))
    ours, theirs = Switches.__doc__.split("used by the estimators")
    for name in Switches.model_fields:
        if name in CHANGED:
            assert name in ours
            assert not np.allclose(observed(Switches(**{name: CHANGED[name]})), usual, rtol=1e-4), name
        else:
            assert name in theirs or f"...{name[name.index('_') :]}" in theirs, name
    assert not np.allclose(observed(Switches(perception_loss="released")), usual, rtol=1e-4)


# ---- refusals ----


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: semantics(Switches(), text=TEXT[1:]), "text of 10 clips"),
        (lambda: prior(Switches(), text=np.stack([TEXT] * 7, 1)), r"text \(11, 7, 5\) for 6 keyframes"),
        (lambda: semantics(Switches(), projector=None), "only one of text and projector"),
        (lambda: prior(Switches(), text=None), "only one of text and projector"),
        (lambda: prior(Switches(), present=np.zeros((B, R), bool)), "11 clips, first number 0"),
        (lambda: prior(Switches(), present=np.ones((B, R + 1), bool)), r"\(11, 3\); expected \(11, 2\)"),
        (lambda: perception(switches("released"), teacher=None), "without a teacher"),
        (lambda: perception(switches("released"), teacher=(TEACHER[0], TEACHER[1][1:])), "augmented of 10"),
        (lambda: SemanticsObjective(RESPONSES, 0 * TOKENS, switches=Switches(), steps=9, batch=5), "variance of 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(unchecked_types, make, named):
    with pytest.raises(DataError, match=named):
        make()


def test_released_loss_refuses_a_network_without_maps():
    objective = perception(switches("released"))
    with pytest.raises(DataError, match="maps=True"):
        objective.loss(perception_network(), objective.batches(0, seeded()), seeded())


# ---- learning ----

TRAIN, HELD = 160, 40


def planted(width, seed):
    """Features of clips, and a map of them to ``width`` numbers.

    They are 12, since held-out chance is 0.5 on average over shuffles and spreads more, the fewer features there are.
    """
    return randn(TRAIN + HELD, 12, seed=40), randn(12, width, seed=seed) / math.sqrt(12)


def planted_responses(voxels=37):
    z, w = planted(voxels, 41)
    return (z @ w)[:, None] + 0.3 * randn(TRAIN + HELD, R, voxels, seed=42)


def identified(predicted, truth):
    """How often a row is more like its own truth than like another's, by correlation; chance is 0.5."""
    p, t = (unit(x - x.mean(axis=0)) for x in (predicted.reshape(HELD, -1), truth.reshape(HELD, -1)))
    similar = p @ t.T
    return (similar < similar.diagonal()[:, None]).sum() / (HELD * (HELD - 1))


def fitted(network, objective, steps, rate):
    how = TrainingSettings(steps=steps, learning_rate=rate, seed=3, validate_every=steps, weight_decay=0.01)
    return train(network, objective.loss, objective.batches, settings=how, device="cpu").module


def beside_shuffled(fit, *, least):
    """``fit`` of the order of training clips that responses come in gives the held-out identification."""
    true, shuffled = fit(np.arange(TRAIN)), fit(np.random.default_rng(5).permutation(TRAIN))
    assert true > least
    assert abs(shuffled - 0.5) < 0.2
    assert true > shuffled + 0.2


@pytest.mark.parametrize("preset", PRESETS)
def test_a_planted_map_to_tokens_is_learnt(preset):
    s, (z, w) = switches(preset), planted(K * D, 43)
    tokens = (z @ w).reshape(-1, 1, K, D) + 0.2 * randn(len(z), M, K, D, seed=44)
    text = tokens.mean(axis=(1, 2)) @ projector().weight.detach().numpy().T
    responses = planted_responses()

    def fit(order):
        x, codes = responses, preset != "released"
        if codes:
            pairs = x[order].mean(axis=1), tokens[:TRAIN].mean(axis=1).reshape(TRAIN, -1)
            x = x @ np.linalg.lstsq(*pairs, rcond=None)[0]
        objective = SemanticsObjective(
            x[order], tokens[:TRAIN], switches=s, steps=100, batch=40, text=text[:TRAIN], projector=projector(),
            codes=codes,
        )  # fmt: skip
        network = fitted(semantics_network(responses.shape[2], width=K * D, dropout=0.15), objective, 100, 5e-3)
        held = torch.from_numpy(x[TRAIN:].mean(axis=1))
        with torch.no_grad():
            predicted = (network.from_code(held) if codes else network(held)).tokens.numpy()
        return identified(predicted, tokens[TRAIN:].mean(axis=1))

    beside_shuffled(fit, least=0.9)


@pytest.mark.parametrize("preset", ["corrected", "released"])  # to the prior, the paper's is the corrected one
def test_a_planted_map_to_the_prior_is_learnt(preset):
    k, d = 2, 16
    z, w = planted(k * d, 45)
    clean = (z @ w).reshape(-1, 1, k, d)
    tokens = clean + 0.1 * randn(len(z), M, k, d, seed=46)
    conditions = clean @ np.linalg.qr(randn(d, d, seed=47))[0] + 0.1 * randn(len(z), R, k, d, seed=48)
    torch.manual_seed(8)
    judge = TextProjector(d, E)
    text = clean.mean(axis=(1, 2)) @ judge.weight.detach().numpy().T

    def fit(order):
        objective = PriorObjective(
            conditions[order], tokens[:TRAIN], switches=switches(preset), batch=40, text=text[:TRAIN], projector=judge
        )
        torch.manual_seed(2)
        prior = DiffusionPrior(PriorNetwork(tokens=k, width=d, depth=1, heads=4, head_width=8))
        fitted(prior, objective, 150, 2e-2)
        noise = [seeded(clip) for clip in range(HELD)]
        return identified(prior.expected(torch.from_numpy(conditions[TRAIN:, 0]), noise).numpy(), clean[TRAIN:])

    beside_shuffled(fit, least=0.85)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_planted_map_to_latents_is_learnt(preset):
    s, released = switches(preset), preset == "released"
    z, w = planted(F * LATENT[0] * P, 49)
    latents = (z @ w).reshape(-1, F, LATENT[0], 2, 1).repeat(2, axis=3).repeat(2, axis=4)
    places = latents[..., ::2, ::2].transpose(0, 1, 3, 4, 2).reshape(len(z), F, P, LATENT[0])
    places = np.tanh(places @ randn(LATENT[0], 512, seed=50))
    teacher = (places[:TRAIN], (places + 0.1 * randn(*places.shape, seed=51))[:TRAIN])
    responses = planted_responses()
    options = dict(expansion="inception", maps=True, dropout=0.1) if released else {}

    def fit(order):
        objective = PerceptionObjective(
            responses[order], latents[:TRAIN], switches=s, batch=20, teacher=teacher if released else None
        )
        network = perception_network(responses.shape[2], position=s.temporal_position, width=24, **options)
        network = fitted(network, objective, 100, 2e-2)
        with torch.no_grad():
            predicted = network(torch.from_numpy(responses[TRAIN:].mean(axis=1))).latents.numpy()
        return identified(predicted, latents[TRAIN:])

    beside_shuffled(fit, least=0.75)
