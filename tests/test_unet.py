"""The ADM UNet against the published architectures: names, outputs, gradients, options."""

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from guided_diffusion.nn import GroupNorm, timestep_embedding
from guided_diffusion.unet import create_model
from guided_diffusion.unet_blocks import AttentionBlock
from tests.conftest import golden_path
from tests.helpers import fill_network
from util.errors import UserError

TINY = dict(image_size=32, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="16",
            num_head_channels=16, use_scale_shift_norm=True, resblock_updown=True, learn_sigma=True)


def small_config(name: str) -> dict:
    return json.loads(golden_path("unet_configs.json").read_text())[name]


@pytest.mark.parametrize("name", ["ffhq", "imagenet", "gd_256_uncond", "gd_64_cond", "gd_512_cond"])
def test_state_dict_of_the_published_checkpoints(name):
    reference = json.loads(golden_path(f"unet_{name}_keys.json").read_text())
    options = {key: value for key, value in reference["config"].items() if key != "model_path"}
    with torch.device("meta"):
        model = create_model(**options)
    state = [(key, list(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert state == list(map(tuple, reference["state_dict"].items()))
    assert sum(p.numel() for p in model.parameters()) == reference["n_parameters"]


@pytest.mark.parametrize("name", list("abcdefg"))
def test_output_and_input_gradient(name, golden):
    name = f"unet_{name}"
    reference, arrays = small_config(name), golden(name)
    model = create_model(**{k: v for k, v in reference["config"].items() if k != "model_path"})
    fill_network(model, reference["salt"])
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    labels = torch.from_numpy(arrays["y"]) if "y" in arrays else None
    out = model(x, torch.from_numpy(arrays["t"]), labels)
    gradient, = torch.autograd.grad((out * torch.from_numpy(arrays["w"])).sum(), x)
    torch.testing.assert_close(out, torch.from_numpy(arrays["out"]), atol=2e-5, rtol=0)
    torch.testing.assert_close(gradient, torch.from_numpy(arrays["grad_x"]), atol=5e-5, rtol=0)


def test_timestep_embedding(golden):
    for name in ("unet_a", "unet_g"):
        arrays = golden(name)
        embedding = timestep_embedding(torch.from_numpy(arrays["t"]), 32)
        torch.testing.assert_close(embedding, torch.from_numpy(arrays["temb"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("option", [dict(use_checkpoint=True), dict(dropout=0.5)])
def test_options_that_change_no_number_in_evaluation(option):
    plain, other = create_model(**TINY), create_model(**TINY, **option)
    fill_network(plain, 0)
    fill_network(other, 0)
    x, t = torch.randn(2, 3, 32, 32, generator=torch.manual_seed(0)), torch.tensor([3, 700])
    gradients = []
    for model in (plain.requires_grad_(False), other.requires_grad_(False)):        # frozen, as in sampling
        x = x.detach().requires_grad_()
        gradients.append(torch.autograd.grad(model(x, t).square().sum(), x)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_inside_the_network(dtype):
    model = create_model(**TINY)
    fill_network(model, 0)
    x, t = torch.randn(1, 3, 32, 32, generator=torch.manual_seed(0)), torch.tensor([500])
    exact = model(x, t)
    model.autocast_dtype = dtype
    out = model(x, t)
    assert out.dtype == torch.float32
    error = (out - exact).abs().max()
    assert 0 < error < 0.1 * exact.abs().max()


def test_use_fp16_option_selects_float16_autocast():
    assert create_model(**TINY, use_fp16=True).autocast_dtype == torch.float16
    assert create_model(**TINY).autocast_dtype is None


def test_runs_in_double_precision():
    model = create_model(**TINY)
    fill_network(model, 0)
    x, t = torch.randn(1, 3, 32, 32, generator=torch.manual_seed(0)), torch.tensor([500])
    single = model(x, t)
    double = model.double()(x.double(), t)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=2e-5, rtol=0)


def test_sizes_it_was_not_trained_on():
    model = create_model(**TINY)
    model.check_image_size(64, 48)
    assert model(torch.zeros(1, 3, 64, 48), torch.tensor([0])).shape == (1, 6, 64, 48)
    for size in ((33, 32), (32, 1), (0, 32)):
        with pytest.raises(UserError, match="multiples of 2"):
            model.check_image_size(*size)


def test_class_label_of_the_config_is_used_where_the_call_gives_none():
    model = create_model(**TINY, class_cond=True, class_label=7)
    fill_network(model, 0)
    x, t = torch.zeros(2, 3, 32, 32), torch.tensor([1, 1])
    torch.testing.assert_close(model(x, t), model(x, t, torch.tensor([7, 7])))
    assert not torch.allclose(model(x, t), model(x, t, torch.tensor([8, 8])))
    with pytest.raises(UserError, match="class_label"):
        create_model(**TINY, class_cond=True)(x, t)


def test_attention_orders_differ_by_a_permutation_of_the_qkv_channels():
    legacy, new = (AttentionBlock(64, 4, -1, new_order=order) for order in (False, True))
    fill_network(legacy, 0)
    state = legacy.state_dict()
    for key in ("qkv.weight", "qkv.bias"):              # (head, q|k|v, channel) -> (q|k|v, head, channel)
        state[key] = state[key].unflatten(0, (4, 3, 16)).transpose(0, 1).flatten(0, 2)
    new.load_state_dict(state)
    x = torch.randn(2, 64, 4, 6, generator=torch.manual_seed(0))
    torch.testing.assert_close(new(x), legacy(x))


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_attention_takes_a_fused_kernel(new_order, layout):
    """One that never holds the L x L weights; it raises where it cannot serve the tensors as they lie in memory."""
    block = fill_network(AttentionBlock(64, 4, -1, new_order=new_order), 0)
    x = torch.randn(2, 64, 8, 8, generator=torch.manual_seed(0)).to(memory_format=layout).requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused, = torch.autograd.grad(block(x).square().sum(), x)
    with sdpa_kernel(SDPBackend.MATH):
        plain, = torch.autograd.grad(block(x).square().sum(), x)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mult", ["0.5,1", [0.5, 1], (1, 1.5)])
def test_fractional_channel_mult(mult):
    model = create_model(**{**TINY, "num_channels": 64, "channel_mult": mult})
    assert model(torch.zeros(1, 3, 32, 32), torch.tensor([0])).shape == (1, 6, 32, 32)


@pytest.mark.parametrize("least, groups", [(1, (32, 32, 32)), (4, (8, 16, 32)), (32, (1, 2, 4))])
def test_groups_of_several_channels_keep_their_means(least, groups):
    """One constant more or less in a channel is lost in a group of one channel, and seen in a larger one."""
    model = create_model(**{**TINY, "channel_mult": "1,2,4", "min_channels_per_group": least})
    found = {module.num_channels: module.num_groups for module in model.modules() if isinstance(module, GroupNorm)}
    assert tuple(found[channels] for channels in (32, 64, 128)) == groups
    norm = model.out[0]
    x, means = torch.randn(1, 32, 8, 8), torch.linspace(-2, 2, 32).view(1, 32, 1, 1)
    change = norm(x + means).mean((2, 3)) - norm(x).mean((2, 3))
    assert (change.abs().max() > 0.1) == (least > 1)


@pytest.mark.parametrize("resolutions, attention_blocks", [
    (16, 4), ("16", 4), ([16], 4), ("32,16", 7), ("", 1), ("8", 1)])
def test_attention_resolutions(resolutions, attention_blocks):
    model = create_model(**{**TINY, "attention_resolutions": resolutions})
    assert sum(isinstance(module, AttentionBlock) for module in model.modules()) == attention_blocks


@pytest.mark.parametrize("options, message", [
    (dict(num_channels="wide"), "num_channels is 'wide'"),
    (dict(num_channels=40), "multiple of 32"),
    (dict(min_channels_per_group=3), "min_channels_per_group is 3"),
    (dict(channel_mult="1,x"), "channel_mult"),
    (dict(channel_mult="", image_size=100), "no default channel_mult"),
    (dict(channel_mult="-1,2"), "positive"),
    *[(dict(channel_mult=mult), "positive numbers of at most") for mult in ("nan", "1,inf", "1,1e300")],
    *[(dict(channel_mult=mult), "channel_mult names no level") for mult in (",", " ")],
    (dict(num_head_channels=48), "attention heads"),
    (dict(num_head_channels=-1, num_heads=5), "attention heads"),
    (dict(num_head_channels=0), "num_head_channels is 0, expected an integer, 1 to 8192 or one of -1"),
    (dict(num_heads=0), "num_heads is 0, expected an integer, 1 to 8192"),
    (dict(num_res_blocks=0), "num_res_blocks is 0, expected an integer, 1 to 100"),
    (dict(dropout=1.5), "dropout is 1.5, expected a finite number, 0 or more and less than 1"),
    (dict(class_label=3), "class_cond"),
    (dict(class_cond=True, class_label=1000), "class_label is 1000, expected an integer, 0 or more and less than 1000"),
    (dict(learn_sigma="yes"), "true or false"),
])
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        create_model(**{**TINY, **options})


def test_patches_run_the_network_at_a_part_of_the_resolution():
    """Sizes, the levels that attention stands at, and one convolution that copies a patch's pixels to their places."""
    options = dict(image_size=32, num_channels=32, num_res_blocks=1, channel_mult="1,2", attention_resolutions="8",
                   num_head_channels=16, learn_sigma=True, patch_size=2)
    model = create_model(**options)
    assert model.multiple == 4
    assert model.input_blocks[0][0].weight.shape == (32, 12, 3, 3) and model.out[2].weight.shape == (24, 32, 3, 3)
    assert sum(isinstance(layer, AttentionBlock) for layer in model.input_blocks.modules()) == 1
    with pytest.raises(UserError, match="multiples of 4"):
        model.check_image_size(30, 32)
    fill_network(model, 0)
    x, t = torch.randn(2, 3, 16, 24, generator=torch.manual_seed(0)), torch.tensor([3, 500])
    assert model(x, t).shape == (2, 6, 16, 24)
    with torch.no_grad():                           # the first output channel: what the bias says of each place
        model.out[2].weight.zero_()
        model.out[2].bias.copy_(torch.arange(24.0))
    assert model(x, t)[0, 0, :2, :2].tolist() == [[0, 1], [2, 3]]
