"""The semantics network against closed forms and the paper's parameter counts."""

import io

import pytest
import torch
from torch import nn

from neuroclips.decoders.losses import Mixup, bimixco
from neuroclips.decoders.residual import ResidualBlock, ResidualStack
from neuroclips.decoders.semantics import SemanticsNetwork

B, V, K, D, WIDTH = 4, 23, 3, 10, 14
SMALL = dict(tokens=K, token_width=D, width=WIDTH, hidden=13)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def gelu(x):
    return x * torch.special.ndtr(x)


def normed(x, layer):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def randomise_norms(module):
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.weight.normal_()
                layer.bias.normal_()


@pytest.mark.parametrize(("voxels", "first"), [(13447, 55_083_008), (14828, 60_739_584), (9114, 37_335_040)])
def test_paper_size_has_the_paper_counts(voxels, first):
    mixers = 134_283_264 + 24  # of the released backbone; none of them can learn
    for projector in ("residual", "mlp"):
        with torch.device("meta"):
            network = SemanticsNetwork(voxels, blocks=0, projector=projector)
        assert parameters(network.input) == first
        assert parameters(network.head) == 1_745_256_448
        assert parameters(network.projector) == 8_321_664
        assert parameters(network.backbone) == 0
        assert parameters(network) - first + mixers == 1_887_861_400
    with torch.device("meta"):
        stack = SemanticsNetwork(voxels).backbone
    assert parameters(stack) == 4 * (2 * 4096 + 4097 * 1024 + 1025 * 4096)


def test_a_residual_block_is_its_formula_and_starts_near_the_identity():
    block = ResidualBlock(WIDTH, 13, 0.5).eval()
    x = torch.randn(2, 5, WIDTH)
    assert (block(x) - x).std() < 0.1 * x.std()
    randomise_norms(block)
    hidden = gelu(normed(x, block.norm) @ block.up.weight.T + block.up.bias)
    torch.testing.assert_close(block(x), x + hidden @ block.down.weight.T + block.down.bias, atol=1e-5, rtol=1e-4)
    assert torch.equal(ResidualStack(WIDTH, 0, 13, 0.5)(x), x)


@pytest.mark.parametrize("projector", ["residual", "mlp"])
def test_the_projector_sees_one_token_at_a_time(projector):
    network = SemanticsNetwork(V, **SMALL, projector=projector).eval()
    randomise_norms(network)
    out = network(torch.randn(B, V))
    for clip in range(B):
        for token in range(K):
            x = start = out.backbone_tokens[clip, token]
            for i in (0, 3, 6):
                linear = network.projector[i + 2]
                x = gelu(normed(x, network.projector[i])) @ linear.weight.T + linear.bias
            expected = start + x if projector == "residual" else x
            torch.testing.assert_close(out.tokens[clip, token], expected, atol=1e-5, rtol=1e-4)


def test_tokens_are_cut_from_the_head_in_order():
    network = SemanticsNetwork(V, **SMALL, blocks=0).eval()
    x = torch.randn(B, V)
    code = x @ network.input.weight.T + network.input.bias
    out = network(x)
    for token in range(K):
        own = slice(token * D, (token + 1) * D)
        expected = code @ network.head.weight[own].T + network.head.bias[own]
        torch.testing.assert_close(out.backbone_tokens[:, token], expected, atol=1e-5, rtol=1e-4)
    assert (out.tokens - out.backbone_tokens).std() < 0.2 * out.backbone_tokens.std()


@pytest.mark.parametrize("options", [{}, {"projector": "mlp"}, {"blocks": 0}])
def test_every_parameter_learns(options):
    network = SemanticsNetwork(V, **SMALL, **options)
    everyone = Mixup(torch.ones(B), torch.tensor([1, 2, 3, 0]))
    bimixco(network(torch.randn(B, V)).tokens, torch.randn(B, K, D), everyone).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("projector", ["residual", "mlp"])
def test_predictions_depend_on_neither_neighbours_nor_order(projector):
    network = SemanticsNetwork(V, **SMALL, projector=projector).eval()
    x, others = torch.randn(B, V), torch.randn(7, V)
    alone = torch.cat([network(clip[None]).tokens for clip in x])
    order = torch.tensor([2, 0, 3, 1])
    for tokens in (
        network(x).tokens,
        network(x[order]).tokens[order.argsort()],
        network(torch.cat((others, x))).tokens[7:],
    ):
        torch.testing.assert_close(tokens, alone, atol=1e-5, rtol=1e-4)


def test_codes_may_come_from_elsewhere():
    network = SemanticsNetwork(V, **SMALL).eval()
    x = torch.randn(B, V)
    out, again = network(x), network.from_code(x @ network.input.weight.T + network.input.bias)
    torch.testing.assert_close(again.tokens, out.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(again.backbone_tokens, out.backbone_tokens, atol=1e-5, rtol=1e-4)


def test_dropout_is_for_training_only():
    network = SemanticsNetwork(V, **SMALL)
    x = torch.randn(B, V)
    assert not torch.equal(network(x).tokens, network(x).tokens)
    network.eval()
    assert torch.equal(network(x).tokens, network(x).tokens)


def test_state_is_all_that_there_is():
    first, second = (SemanticsNetwork(V, **SMALL).eval() for _ in range(2))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    x = torch.randn(B, V)
    assert not torch.allclose(first(x).tokens, second(x).tokens)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(first(x).tokens, second(x).tokens)
