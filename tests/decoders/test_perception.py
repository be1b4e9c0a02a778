"""The perception network against diffusers, torch's own attention, closed forms and the paper's parameter counts."""

import io
import math

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder as DiffusersDecoder
from torch import nn

from neuroclips.decoders.losses import perception_loss, released_perception_loss
from neuroclips.decoders.perception import (
    Doubling,
    FrameCodes,
    Inception,
    LatentDecoder,
    PerceptionNetwork,
    ResNet,
    SpatialAttention,
    TemporalAttention,
    doublings,
    frame_positions,
    group_norm,
)
from neuroclips.errors import DataError

B, V, F, LATENT, WIDTH = 4, 23, 3, (5, 8, 16), 14
SMALL = dict(frames=F, latent=LATENT, width=WIDTH, hidden=13, grid=2, grid_channels=6, channels=(12, 9, 7), rank=11)
KINDS = [
    dict(),
    dict(blocks=3, maps=True),
    dict(position=False, skip=True),
    dict(expansion="inception", maps=True),
    dict(expansion="inception", blocks=0),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


# --- sizes


@pytest.mark.parametrize(("voxels", "released"), [(13447, 24_244_270), (14828, 26_727_308), (9114, 16_453_536)])
def test_released_layers_have_the_released_sizes(voxels, released):
    with torch.device("meta"):
        network = PerceptionNetwork(voxels, expansion="inception", blocks=0, maps=True)
    # The half of inception's mixer that runs over a sequence of one, LayerNorm(1) and Linear(1, 1), is left out.
    assert parameters(network.inception) + 2 + 2 == released
    assert parameters(network.input) == {13447: 55_083_008, 14828: 60_739_584, 9114: 37_335_040}[voxels]
    assert parameters(network.to_grid) == 12_848_192
    assert parameters(network.decoder) == 2_166_443
    assert parameters(network.maps) == 559_616
    mixers = 134_283_264 + 24  # the released backbone's, which cannot learn
    backbone = network.to_grid, network.norm, network.decoder, network.maps
    assert sum(map(parameters, backbone)) + mixers == 149_857_667
    assert parameters(network) == released - 4 + parameters(network.input) + 149_857_667 - mixers
    assert released + parameters(network.input) + 149_857_667 == 229_184_945 or voxels != 13447


def test_position_and_mixing_of_frames_change_no_count():
    with torch.device("meta"):
        ordered, unordered = LatentDecoder(64, 4), LatentDecoder(64, 4, position=False)
    assert parameters(ordered) == parameters(unordered) == 2_166_443
    assert sum(isinstance(m, TemporalAttention) for m in ordered.modules()) == 7
    assert ordered.state_dict().keys() == unordered.state_dict().keys()


@pytest.mark.parametrize(
    ("latent", "grid"), [((4, 28, 28), 7), ((16, 8, 8), 4), ((16, 8, 8), 8), ((16, 8, 8), 2), ((3, 12, 20), 3)]
)
def test_latents_have_the_shape_that_was_asked_for(latent, grid):
    network = PerceptionNetwork(V, frames=6, latent=latent, width=9, hidden=5, rank=3, grid=grid, channels=(8, 6, 4))
    assert network(torch.randn(2, V)).latents.shape == (2, 6, *latent)


def test_grids_that_do_not_double_to_the_latent_are_refused():
    assert [doublings((4, 28, 28), 7, 3), doublings((16, 8, 8), 8, 3), doublings((1, 8, 4), 2, 2)] == [2, 0, 2]
    for latent, grid in (((4, 28, 28), 8), ((4, 28, 30), 7), ((4, 32, 32), 2), ((4, 7, 7), 14), ((4, 8, 8), 0)):
        with pytest.raises(DataError, match=f"a grid of {grid} rows cannot become latents of {latent[1]} x"):
            doublings(latent, grid, 3)
    with pytest.raises(DataError, match="one code a clip"):
        PerceptionNetwork(V, **SMALL, expansion="inception", skip=True)


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (64, 32), (32, 16), (48, 16), (12, 4), (9, 1), (1, 1)])
def test_groups_divide_channels_and_hold_two_or_more(channels, groups):
    assert group_norm(channels).num_groups == groups


# --- parts against what they should be


def test_decoder_without_temporal_attention_is_diffusers_decoder():
    channels = (28, 20, 12)
    ours = LatentDecoder(5, 3, frames=2, channels=channels, doublings=2)
    theirs = DiffusersDecoder(
        in_channels=5, out_channels=3, up_block_types=("AttnUpDecoderBlock2D",) * 3,
        block_out_channels=channels[::-1], layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) / 4 + ("norm" in name and name.endswith("weight")))
        for module in ours.modules():
            if isinstance(module, TemporalAttention):
                module.keep.fill_(1)
    ours.layers[0].load_state_dict(theirs.conv_in.state_dict())
    ours.layers[-2].load_state_dict(theirs.conv_norm_out.state_dict())
    ours.last.load_state_dict(theirs.conv_out.state_dict())
    parts = [m for m in ours.modules() if isinstance(m, ResNet | SpatialAttention | Doubling)]
    for mine, its in zip(parts, diffusers_parts(theirs), strict=True):
        if isinstance(mine, ResNet):
            renamed = {k.replace("conv_shortcut", "shortcut"): v for k, v in its.state_dict().items()}
        elif isinstance(mine, SpatialAttention):
            assert its.heads == 1
            renamed = {f"norm.{k}": v for k, v in its.group_norm.state_dict().items()}
            renamed |= {f"out.{k}": v for k, v in its.to_out[0].state_dict().items()}
            for k in ("weight", "bias"):
                renamed[f"qkv.{k}"] = torch.cat([getattr(layer, k) for layer in (its.to_q, its.to_k, its.to_v)])
        else:
            renamed = its.state_dict()
        mine.load_state_dict(renamed)
    x = torch.randn(3, 2, 5, 4, 6)
    expected = theirs(x.flatten(0, 1)).unflatten(0, (3, 2))
    assert expected.shape == (3, 2, 3, 16, 24)
    torch.testing.assert_close(ours(x), expected, atol=2e-4 * expected.std().item(), rtol=1e-3)


def diffusers_parts(decoder):
    """Blocks in the order of computation."""
    yield from (decoder.mid_block.resnets[0], decoder.mid_block.attentions[0], decoder.mid_block.resnets[1])
    for up in decoder.up_blocks:
        for resnet, attention in zip(up.resnets, up.attentions):
            yield from (resnet, attention)
        yield from up.upsamplers or ()


@pytest.mark.parametrize("position", [True, False])
def test_temporal_attention_is_torch_attention_over_the_frames_of_a_clip(position):
    clips, frames, channels = 2, 3, 10
    ours = TemporalAttention(channels, frames, position)
    reference = nn.MultiheadAttention(channels, 1, batch_first=True)
    with torch.no_grad():
        ours.keep.fill_(0.3)
        ours.norm.weight.normal_()
        ours.norm.bias.normal_()
    reference.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        }
    )  # fmt: skip
    x = torch.randn(clips * frames, channels, 4, 5)
    y = ours(x)
    for clip in range(clips):
        own = x[clip * frames : (clip + 1) * frames]
        normed = nn.functional.group_norm(own, 2, ours.norm.weight, ours.norm.bias, eps=1e-6)
        for row in range(4):
            for column in range(5):
                group = normed[:, :, row, column]
                if position:
                    group = group + frame_positions(frames, channels)
                attended = own[:, :, row, column] + reference(group[None], group[None], group[None])[0][0]
                expected = 0.3 * own[:, :, row, column] + 0.7 * attended
                torch.testing.assert_close(y[clip * frames :][:frames, :, row, column], expected, atol=1e-5, rtol=1e-4)


def test_positions_are_sinusoids_that_tell_frames_apart():
    codes = frame_positions(6, 9)
    for frame in range(6):
        for i in range(9):
            wave = math.sin if i < 5 else math.cos
            assert codes[frame, i].item() == pytest.approx(wave(frame * 10_000 ** (-2 * (i % 5) / 9)), abs=1e-5)
    assert torch.cdist(codes, codes)[~torch.eye(6, dtype=torch.bool)].min() > 0.5


def test_frame_codes_are_the_code_plus_a_low_rank_change():
    expand = FrameCodes(WIDTH, F, 2)
    code = torch.randn(50, WIDTH)
    frames = expand(code)
    up, bias = expand.up.weight.view(F, WIDTH, 2), expand.up.bias.view(F, WIDTH)
    for f in range(F):
        expected = code + (code @ expand.down.weight.T + expand.down.bias) @ up[f].T + bias[f]
        torch.testing.assert_close(frames[:, f], expected, atol=1e-5, rtol=1e-4)
    change = frames - code[:, None]
    assert torch.linalg.matrix_rank((change - change.mean(0)).flatten(1), rtol=1e-4) == 2
    assert change.std() < 0.2 * code.std()


def test_inception_is_its_formula():
    inception = Inception(V, F, 7, 0.5).eval()
    x = torch.randn(B, V)

    def gelu(x):
        return x * torch.special.ndtr(x)

    hidden = gelu(x @ inception.first.weight.T + inception.first.bias)
    normed = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    hidden = hidden + gelu(normed @ inception.inner.weight.T + inception.inner.bias)
    patterns = gelu(hidden @ inception.last.weight.T + inception.last.bias)
    for f in range(F):
        torch.testing.assert_close(inception(x)[:, f], patterns[:, f * V : (f + 1) * V], atol=1e-5, rtol=1e-4)


# --- the whole


@pytest.mark.parametrize("options", KINDS)
def test_every_parameter_learns(options):
    network = PerceptionNetwork(V, **SMALL, **options)
    out = network(torch.randn(B, V))
    target = torch.randn(B, F, *LATENT)
    if out.maps is None:
        loss = perception_loss(out.latents, target)
    else:
        assert out.maps.shape == (B, F, 2 * 4, 512)
        student = out.maps.flatten(0, 2)
        loss = released_perception_loss(out.latents, target, student, *torch.randn(2, *student.shape))
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("options", KINDS)
def test_predictions_depend_on_neither_neighbours_nor_order(options):
    network = PerceptionNetwork(V, **SMALL, **options).eval()
    x, others = torch.randn(B, V), torch.randn(7, V)
    alone = torch.cat([network(clip[None]).latents for clip in x])
    order = torch.tensor([2, 0, 3, 1])
    for latents in (
        network(x).latents,
        network(x[order]).latents[order.argsort()],
        network(torch.cat((others, x))).latents[7:],
    ):
        torch.testing.assert_close(latents, alone, atol=1e-5, rtol=1e-4)
    assert (alone[0] - alone[1]).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_frames_of_a_clip_interact_and_clips_never(training):
    decoder = LatentDecoder(6, 5, frames=F, channels=(12, 9, 7), doublings=1).train(training)
    maps = torch.randn(B, F, 6, 4, 8)
    changed = maps.clone()
    changed[1, 2] += torch.randn(6, 4, 8)
    difference = (decoder(changed) - decoder(maps)).abs().amax(dim=(2, 3, 4))
    assert (difference[1] > 1e-4).all()
    assert difference[[0, 2, 3]].max() < 1e-6


def test_order_of_frames_counts_with_position_codes_only():
    maps, order = torch.randn(B, F, 6, 4, 8), torch.tensor([2, 0, 1])
    for position in (False, True):
        decoder = LatentDecoder(6, 5, frames=F, channels=(12, 9, 7), doublings=1, position=position)
        moved = (decoder(maps[:, order]) - decoder(maps)[:, order]).abs().max()
        assert (moved > 1e-3) if position else (moved < 1e-5)


def test_dropout_is_for_training_only():
    network = PerceptionNetwork(V, **SMALL)
    x = torch.randn(B, V)
    assert not torch.equal(network(x).latents, network(x).latents)
    network.eval()
    assert torch.equal(network(x).latents, network(x).latents)


def test_codes_may_come_from_elsewhere():
    for options in ({}, {"skip": True}, {"expansion": "inception"}):
        network = PerceptionNetwork(V, **SMALL, **options).eval()
        x = torch.randn(B, V)
        code = network.inception(x) @ network.input.weight.T + network.input.bias
        torch.testing.assert_close(network.from_code(code).latents, network(x).latents, atol=1e-5, rtol=1e-4)


def test_with_skip_the_network_starts_as_the_linear_map_that_it_is_given():
    network = PerceptionNetwork(V, **SMALL, skip=True).eval()
    components, mean = torch.randn(F * math.prod(LATENT), WIDTH), torch.randn(F * math.prod(LATENT))
    network.skip.load_state_dict({"weight": components, "bias": mean})
    code = torch.randn(B, WIDTH)
    expected = (code @ components.T + mean).view(B, F, *LATENT)
    assert (network.from_code(code).latents - expected).square().mean() < 1e-3 * expected.var()


def test_state_is_all_that_there_is():
    first, second = (PerceptionNetwork(V, **SMALL, maps=True, skip=True).eval() for _ in range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    x = torch.randn(B, V)
    assert not torch.allclose(first(x).latents, second(x).latents)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(x).latents, second(x).latents)
    assert torch.equal(first(x).maps, second(x).maps)
