"""Group statistics of motion modules: per frame as trained, or diffusers' own."""

import pytest
import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import nn

from neuroclips.video.norm import use_frame_norm


@pytest.fixture
def module():
    torch.manual_seed(0)
    made = AnimateDiffTransformer3D(
        num_attention_heads=2, attention_head_dim=4, in_channels=8, norm_num_groups=4,
        positional_embeddings="sinusoidal", num_positional_embeddings=9,
    )  # fmt: skip
    nn.init.normal_(made.norm.weight, 1, 0.3)
    nn.init.normal_(made.norm.bias, 0, 0.3)
    return made.eval()


def test_statistics_are_those_of_each_frame_alone(module):
    use_frame_norm(module)
    x = torch.randn(2, 8, 5, 3, 4) * torch.arange(1, 6).reshape(5, 1, 1)  # frames differ in spread
    found = module.norm(x)
    for frame in range(5):
        alone = nn.functional.group_norm(x[:, :, frame], 4, module.norm.weight, module.norm.bias, 1e-6)
        torch.testing.assert_close(found[:, :, frame], alone)


def test_stock_pools_frames_and_the_two_differ_only_where_frames_differ(module):
    different = torch.randn(2 * 5, 8, 3, 4) * torch.arange(1, 11).reshape(10, 1, 1, 1)
    still = torch.randn(2, 1, 8, 3, 4).expand(2, 5, 8, 3, 4).reshape(10, 8, 3, 4)
    with torch.no_grad():
        stock = [module(x, num_frames=5) for x in (different, still)]
        assert use_frame_norm(module) == 1
        per_frame = [module(x, num_frames=5) for x in (different, still)]
        use_frame_norm(module, False)
        back = module(different, num_frames=5)
    assert (stock[0] - per_frame[0]).std() > 0.05 * (stock[0] - different).std()  # of what the module adds
    torch.testing.assert_close(stock[1], per_frame[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(back, stock[0])


def test_weights_and_their_names_stay(module):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    use_frame_norm(module)
    after = module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
