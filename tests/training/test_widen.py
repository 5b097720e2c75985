"""Narrower networks as a beginning: what a widened one computes, and what is refused."""

import pytest
import torch
import yaml

from guided_diffusion.train import main
from guided_diffusion.training.widen import widened
from guided_diffusion.unet import create_model
from tests.training.tiny import MODEL, PHASES
from util.errors import UserError

OPTIONS = [{}, dict(use_scale_shift_norm=False, resblock_updown=True, patch_size=2, num_res_blocks=2, image_size=32)]


def network(**options):
    """With random weights everywhere, as layers start that are zero in a new network."""
    torch.manual_seed(0)
    model = create_model(**{**MODEL, **options})
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("narrow, wide", [("1,2,4", "2,3,4"), ("1,2,4", "1,3,4"), ("1,1,4", "1,2,4")])
def test_a_wider_network_begins_with_what_the_narrower_one_computes(options, narrow, wide):
    narrow, model = network(**options, channel_mult=narrow), network(**options, channel_mult=wide)
    model.load_state_dict(widened(narrow.state_dict(), model), strict=True)
    x, t = torch.randn(2, 3, narrow.image_size, narrow.image_size), torch.tensor([3, 700])
    expected = narrow(x, t)
    assert (model(x, t) - expected).norm() < 0.03 * (expected - expected.mean()).norm()


@torch.no_grad()
def test_copies_read_alike_but_learn_apart():
    """The first convolution repeats its outputs; the weights that read them differ, and add up to those of before."""
    narrow = network(channel_mult="2,4")
    old, new = narrow.state_dict(), widened(narrow.state_dict(), network(channel_mult="3,4"))
    first = new["input_blocks.0.0.weight"]          # of 64 channels every second is there twice: 0, 0, 1, 2, 2, 3, ...
    for k, source in enumerate((0, 0, 1)):
        assert torch.equal(first[k::3], old["input_blocks.0.0.weight"][source::2])
    name = "input_blocks.1.0.in_layers.2.weight"
    weight = new[name][0::3]
    assert torch.allclose(weight[:, 0::3] + weight[:, 1::3], old[name][0::2, 0::2], atol=1e-6)
    assert torch.allclose(weight[:, 2::3], old[name][0::2, 1::2], atol=1e-6)
    assert ((weight[:, 0::3] / weight[:, 1::3] - 1).abs() > 0.01).float().mean() > 0.9


def test_levels_that_get_one_width_are_refused():
    with pytest.raises(UserError, match="one width before and after"):
        widened(network(channel_mult="1,2").state_dict(), network(channel_mult="2,2"))


def test_weights_of_the_same_network_and_of_others_stay_as_they_are():
    model = network(channel_mult="1,2")
    for options in (dict(channel_mult="1,2"), dict(channel_mult="2,3"), dict(channel_mult="1,2,3"),
                    dict(channel_mult="1,2", num_res_blocks=2)):
        weights = network(**options).state_dict()
        assert widened(weights, model) is weights
    for mistake in (torch.zeros(4, 3, 3, 3, dtype=torch.int64), torch.zeros(64, 32, 3, 3).to_sparse(), 3,
                    torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)):
        weights = {**network(channel_mult="1,2").state_dict(), "input_blocks.0.0.weight": mistake}
        assert widened(weights, network(channel_mult="2,3")) is weights
    assert widened(nested := {"ema": {}, 1: 1}, model) is nested


def test_a_training_begins_with_a_narrower_network(tmp_path, train, photographs, capsys):
    narrow = network(channel_mult="1,3").state_dict()
    torch.save(narrow, tmp_path / "narrow.pt")
    assert train(tmp_path / "tiny", PHASES[:1], learning_rate=1e-12) == 0   # writes the training file
    words = ["--data", str(photographs), "--config", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "out"),
             "--init", str(tmp_path / "narrow.pt")]
    for mult, status in (("3,3", 2), ("2,3", 0)):
        (tmp_path / "model.yaml").write_text(yaml.safe_dump({**MODEL, "channel_mult": mult}))
        assert main(words) == status
    assert "one width before and after" in capsys.readouterr().err
    left = torch.load(tmp_path / "out" / "ema.pt", weights_only=True)
    assert torch.allclose(left["input_blocks.0.0.bias"].float(), narrow["input_blocks.0.0.bias"].repeat_interleave(2),
                          atol=1e-3)
