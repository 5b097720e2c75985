"""NVIDIA's networks: names and shapes of the releases, forward passes against ADM's and against written equations."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guided_diffusion.priors.edm import load_plain
from guided_diffusion.priors.edm_networks import NETWORKS, Block, DhariwalUNet, SongUNet
from guided_diffusion.unet import create_model
from guided_diffusion.unet_blocks import AttentionBlock, ResBlock
from tests.helpers import fill_network, normal
from util.errors import UserError

FFHQ_VP = """
    enc.64x64_block0-3 128 128
    enc.32x32_down 128 128 resample
    enc.32x32_block0 128 256
    enc.32x32_block1-3 256 256
    enc.16x16_down 256 256 resample
    enc.16x16_block0-3 256 256 attention
    enc.8x8_down 256 256 resample
    enc.8x8_block0-3 256 256
    dec.8x8_in0 256 256 attention
    dec.8x8_in1 256 256
    dec.8x8_block0-4 512 256
    dec.16x16_up 256 256 resample
    dec.16x16_block0-3 512 256
    dec.16x16_block4 512 256 attention
    dec.32x32_up 256 256 resample
    dec.32x32_block0-3 512 256
    dec.32x32_block4 384 256
    dec.64x64_up 256 256 resample
    dec.64x64_block0 384 128
    dec.64x64_block1-4 256 128"""
IMAGENET_ADM = """
    enc.64x64_block0-2 192 192
    enc.32x32_down 192 192 resample
    enc.32x32_block0 192 384 attention
    enc.32x32_block1-2 384 384 attention
    enc.16x16_down 384 384 resample
    enc.16x16_block0 384 576 attention
    enc.16x16_block1-2 576 576 attention
    enc.8x8_down 576 576 resample
    enc.8x8_block0 576 768 attention
    enc.8x8_block1-2 768 768 attention
    dec.8x8_in0 768 768 attention
    dec.8x8_in1 768 768
    dec.8x8_block0-2 1536 768 attention
    dec.8x8_block3 1344 768 attention
    dec.16x16_up 768 768 resample
    dec.16x16_block0 1344 576 attention
    dec.16x16_block1-2 1152 576 attention
    dec.16x16_block3 960 576 attention
    dec.32x32_up 576 576 resample
    dec.32x32_block0 960 384 attention
    dec.32x32_block1-2 768 384 attention
    dec.32x32_block3 576 384 attention
    dec.64x64_up 384 384 resample
    dec.64x64_block0 576 192
    dec.64x64_block1-3 384 192"""


def layer(name: str, *weight: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, **({f"{name}.bias": weight[:1]} if bias else {})}


def blocks(table: str, emb: int, adaptive: bool, taps: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all blocks of a table: name, channels in and out, what it has."""
    found = {}
    for line in table.split("\n")[1:]:
        name, i, o, *has = line.split()
        i, o = int(i), int(o)
        name, _, last = name.partition("-")
        first = int(name[-1]) if last else 0
        for n in range(first, int(last or first) + 1):
            b = f"{name[:-1]}{n}" if last else name
            found |= layer(f"{b}.norm0", i) | layer(f"{b}.conv0", o, i, 3, 3) | layer(f"{b}.norm1", o)
            found |= layer(f"{b}.affine", 2 * o if adaptive else o, emb) | layer(f"{b}.conv1", o, o, 3, 3)
            if i != o or (has == ["resample"] and not adaptive):
                found |= layer(f"{b}.skip", o, i, 1, 1)
            if has == ["resample"]:
                found |= {f"{b}.{conv}.resample_filter": (1, 1, taps, taps) for conv in ("conv0", "skip")}
            if has == ["attention"]:
                found |= layer(f"{b}.norm2", o) | layer(f"{b}.qkv", 3 * o, o, 1, 1) | layer(f"{b}.proj", o, o, 1, 1)
    return found


def song(noise: int, taps: int) -> dict[str, tuple[int, ...]]:
    return {**layer("map_layer0", 512, noise), **layer("map_layer1", 512, 512), **layer("enc.64x64_conv", 128, 3, 3, 3),
            **blocks(FFHQ_VP, 512, False, taps), **layer("dec.64x64_aux_norm", 128),
            **layer("dec.64x64_aux_conv", 3, 128, 3, 3), "map_augment.weight": (noise, 9)}


def residual(side: int, channels: int, out: int) -> dict[str, tuple[int, ...]]:
    name = f"enc.{side}x{side}_aux_residual"
    return layer(name, out, channels, 3, 3) | {f"{name}.resample_filter": (1, 1, 4, 4)}


NCSNPP = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2,
          "resample_filter": [1, 3, 3, 1]}
RELEASES = {                                        # network, names and shapes
    "edm-ffhq-64x64-uncond-vp": ({"name": "SongUNet", "augment_dim": 9}, song(128, 2)),
    "edm-ffhq-64x64-uncond-ve": ({"name": "SongUNet", "augment_dim": 9, **NCSNPP}, {
        **song(256, 4), "map_noise.freqs": (128,), **residual(32, 3, 128), **residual(16, 128, 256),
        **residual(8, 256, 256)}),
    "edm-imagenet-64x64-cond-adm": ({"name": "DhariwalUNet", "label_dim": 1000, "class_label": 207}, {
        **layer("map_layer0", 768, 192), **layer("map_layer1", 768, 768), **layer("map_label", 768, 1000, bias=False),
        **layer("enc.64x64_conv", 192, 3, 3, 3), **blocks(IMAGENET_ADM, 768, True, 2), **layer("out_norm", 192),
        **layer("out_conv", 3, 192, 3, 3)}),
}


def filled(network: nn.Module, salt: int) -> nn.Module:
    """`fill_network`, but for the filters."""
    filters = {name: x.clone() for name, x in network.state_dict().items() if name.endswith("resample_filter")}
    fill_network(network, salt).load_state_dict(filters, strict=False)
    return network


@pytest.mark.parametrize("release", RELEASES)
def test_names_and_shapes_are_those_of_the_releases(release):
    network, expected = RELEASES[release]
    with torch.device("meta"):
        built = NETWORKS.make({"image_size": 64, **network})
    assert {**{name: tuple(x.shape) for name, x in built.state_dict().items()}, **built.unused} == expected


def test_parameters_are_as_many_as_nvidia_s_program_and_openai_s_network_have():
    """A training of DDPM++ at 64 x 64 begins by printing 61,805,571, and 541,952 for its last blocks; OpenAI's ADM has
    6 output channels instead of 3 (`unet_gd_64_cond_keys.json`)."""
    with torch.device("meta"):
        vp, _, adm = (NETWORKS.make({"image_size": 64, **network}) for network, _ in RELEASES.values())
    count = [sum(p.numel() for p in part.parameters()) for part in (vp, vp.dec["64x64_block4"], adm)]
    assert count == [61805571 - 9 * 128, 541952, 295904454 - 3 * (192 * 9 + 1)]


def test_dhariwal_s_unet_is_ours_under_other_names():
    """The two visit their blocks in the same order; of a head's channels, q, k and v stand together in one of them."""
    theirs = filled(DhariwalUNet(16, 128, [1, 2], 4, 1, [8], label_dim=5, class_label=3), salt=100)
    ours = create_model(16, 128, 1, [1, 2], class_cond=True, class_label=3, attention_resolutions="8",
                        num_head_channels=64, use_scale_shift_norm=True, resblock_updown=True)
    pairs = [(ours.time_embed[0], theirs.map_layer0), (ours.time_embed[2], theirs.map_layer1),
             (ours.input_blocks[0][0], theirs.enc["16x16_conv"]), (ours.out[0], theirs.out_norm),
             (ours.out[2], theirs.out_conv)]
    parts = [[m for m in network.modules() if isinstance(m, kind)]
             for network, kind in ((ours, ResBlock), (ours, AttentionBlock), (theirs, Block))]
    for a, b in zip(parts[0], parts[2], strict=True):
        pairs += [(a.in_layers[0], b.norm0), (a.in_layers[2], b.conv0), (a.emb_layers[1], b.affine),
                  (a.out_layers[0], b.norm1), (a.out_layers[3], b.conv1)]
        pairs += [(a.skip_connection, b.skip)] if isinstance(b.skip, nn.Conv2d) else []
    with torch.no_grad():
        for a, b in zip(parts[1], [block for block in parts[2] if block.heads], strict=True):
            pairs += [(a.norm, b.norm2), (a.proj_out, b.proj)]
            for name in ("weight", "bias"):         # (heads, channels, q|k|v) -> (heads, q|k|v, channels)
                values = getattr(b.qkv, name)
                order = values.unflatten(0, (b.heads, 64, 3)).transpose(1, 2).flatten(0, 2)
                getattr(a.qkv, name).copy_(order.view_as(getattr(a.qkv, name)))
        for a, b in pairs:
            for mine, its in zip(a.parameters(), b.parameters(), strict=True):
                mine.copy_(its.view_as(mine))
        ours.label_emb.weight[3] = theirs.map_label.weight[:, 3]
    x, c_noise = normal(2, 3, 16, 16).float(), torch.tensor([-1.3, 0.7])
    torch.testing.assert_close(theirs(x, c_noise), ours(x, c_noise), atol=1e-5, rtol=1e-5)


class Written:
    """SongUNet of two levels, one block each, attention at 8 x 8, as equations over its state dict, in float64."""

    def __init__(self, weights: dict[str, Tensor], taps: list[int], fourier: bool, label: int | None = None):
        self.w, self.taps, self.fourier, self.label = weights, taps, fourier, label

    def __call__(self, x: Tensor, c: Tensor) -> Tensor:
        emb = self.embed(c)
        s0 = self.conv("enc.16x16_conv", x)
        s1 = self.block("enc.16x16_block0", s0, emb)
        s2 = self.block("enc.8x8_down", s1, emb, self.halving(16))
        if self.fourier:
            halve = self.halving(18, pad=0)
            image = F.conv2d(x, self.w["enc.8x8_aux_residual.weight"], padding=2)
            image = halve @ image @ halve.T + self.w["enc.8x8_aux_residual.bias"].view(-1, 1, 1)
            s2 = (s2 + image) / math.sqrt(2)
        s3 = self.block("enc.8x8_block0", s2, emb)
        x = self.block("dec.8x8_in1", self.block("dec.8x8_in0", s3, emb), emb)
        x = self.block("dec.8x8_block0", torch.cat([x, s3], 1), emb)
        x = self.block("dec.8x8_block1", torch.cat([x, s2], 1), emb)
        x = self.block("dec.16x16_up", x, emb, 2 * self.halving(16).T)
        x = self.block("dec.16x16_block0", torch.cat([x, s1], 1), emb)
        x = self.block("dec.16x16_block1", torch.cat([x, s0], 1), emb)
        return self.conv("dec.16x16_aux_conv", F.silu(self.norm("dec.16x16_aux_norm", x)))

    def embed(self, c: Tensor) -> Tensor:
        half = self.w["map_layer0.weight"].shape[1] // 2
        f = 2 * math.pi * self.w["map_noise.freqs"] if self.fourier else torch.tensor(
            [10000 ** (-k / (half - 1)) for k in range(half)], dtype=torch.float64)
        emb = torch.cat([torch.sin(c[:, None] * f), torch.cos(c[:, None] * f)], 1)
        if self.label is not None:
            weight, bias = self.w["map_label.weight"], self.w["map_label.bias"]
            emb = emb + math.sqrt(weight.shape[1]) * weight[:, self.label] + bias
        for name in ("map_layer0", "map_layer1"):
            emb = F.silu(emb @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"])
        return emb

    def halving(self, side: int, pad: int | None = None) -> Tensor:
        """The matrix (side/2, side) of the filter along an axis; its transpose, twice, is the way up."""
        n = len(self.taps)
        pad = (n - 1) // 2 if pad is None else pad
        matrix = torch.zeros((side + 2 * pad - n) // 2 + 1, side + 2 * pad, dtype=torch.float64)
        for i in range(len(matrix)):
            matrix[i, 2 * i:2 * i + n] = torch.tensor(self.taps, dtype=torch.float64) / sum(self.taps)
        return matrix[:, pad:pad + side]

    def conv(self, name: str, x: Tensor) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (min(32, x.shape[1] // 4), -1))
        mean, variance = grouped.mean((2, 3, 4), keepdim=True), grouped.var((2, 3, 4), correction=0, keepdim=True)
        scaled = ((grouped - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
        return scaled * self.w[f"{name}.weight"].view(-1, 1, 1) + self.w[f"{name}.bias"].view(-1, 1, 1)

    def block(self, name: str, x: Tensor, emb: Tensor, resample: Tensor | None = None) -> Tensor:
        h, skip = F.silu(self.norm(f"{name}.norm0", x)), x
        if resample is not None:
            h, skip = (resample @ image @ resample.T for image in (h, x))
        shift = emb @ self.w[f"{name}.affine.weight"].T + self.w[f"{name}.affine.bias"]
        h = self.conv(f"{name}.conv0", h) + shift[:, :, None, None]
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", h)))
        skip = self.conv(f"{name}.skip", skip) if f"{name}.skip.weight" in self.w else skip
        x = (h + skip) / math.sqrt(2)
        if f"{name}.qkv.weight" in self.w:
            q, k, v = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)).flatten(2).unflatten(1, (-1, 3)).unbind(2)
            weight = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(2)              # (B, L, L)
            x = (x + self.conv(f"{name}.proj", (v @ weight.transpose(1, 2)).view_as(x))) / math.sqrt(2)
        return x


TINY = {"image_size": 16, "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}


@pytest.mark.parametrize("kind", ["DDPM++", "NCSN++", "classes"])
def test_song_s_unet_computes_what_is_written(kind):
    options = {"NCSN++": NCSNPP, "classes": {"label_dim": 5, "class_label": 3}, "DDPM++": {}}[kind]
    network = filled(SongUNet(**TINY, **options), salt=300).double().to(memory_format=torch.channels_last)
    written = Written(network.state_dict(), options.get("resample_filter", [1, 1]), kind == "NCSN++",
                      options.get("class_label"))
    x, c_noise = normal(2, 3, 16, 16), torch.tensor([-1.3, 0.7], dtype=torch.float64)
    torch.testing.assert_close(network(x, c_noise), written(x, c_noise), atol=2e-6, rtol=1e-5)
    x.requires_grad_()                              # through the operations that keep less
    gradients = [torch.autograd.grad(f(x, c_noise).square().sum(), x)[0] for f in (network, written)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_a_file_of_nvidia_s_names_is_loaded_strictly(tmp_path):
    """With or without NVIDIA's wrapper, whose names begin with model., and with what only the training used."""
    network, file = filled(SongUNet(**TINY, augment_dim=9), salt=500), tmp_path / "net.pt"
    weights = {**network.state_dict(), "map_augment.weight": torch.ones(16, 9)}
    wrapped = {f"model.{name}": tensor for name, tensor in weights.items()}
    x, c_noise = normal(1, 3, 16, 16).float(), torch.tensor([0.5])
    for content in (weights, wrapped, {"ema": wrapped}):
        torch.save(content, file)
        (tmp_path / "net.pt.sha256").unlink(missing_ok=True)
        again = SongUNet(**TINY, augment_dim=9).eval()
        load_plain(again, file)
        torch.testing.assert_close(again(x, c_noise), network(x, c_noise))
    for options, words in (({}, "unexpected map_augment.weight"), ({"augment_dim": 8}, "map_augment.weight has shape"),
                           ({"augment_dim": 9, "label_dim": 2, "class_label": 0}, "missing map_label.weight, map_l"),
                           ({"augment_dim": 9, "resample_filter": [1, 3, 3, 1]}, "8x8_down.conv0.resample_filter has")):
        with pytest.raises(UserError, match=f"does not fit the model config: .*{words}"):
            load_plain(SongUNet(**TINY, **options), file)


@pytest.mark.parametrize("network, words", [
    ({"name": "SongUnet"}, "unknown network of format edm 'SongUnet'; did you mean 'SongUNet'"),
    ({"name": "SongUNet", "dropout": 0.1}, "unknown key 'dropout'"),
    ({"name": "SongUNet", "label_dim": 10}, "label_dim 10 and class_label None, expected a class_label of 0 to 9"),
    ({"name": "SongUNet", "class_label": 1}, "label_dim 0 and class_label 1, expected none without classes"),
    ({"name": "DhariwalUNet", "label_dim": 3, "class_label": 3}, "class_label 3, expected a class_label of 0 to 2"),
    ({"name": "DhariwalUNet", "model_channels": 96}, "288 channels cannot be split into attention heads of 64"),
    ({"name": "SongUNet", "model_channels": 100}, "channels cannot be normalised in"),
    ({"name": "SongUNet", "image_size": 36}, "image_size 36 and a channel_mult of 4 levels, expected a multiple of 8"),
    ({"name": "SongUNet", "channel_mult": []}, "channel_mult names no level"),
    ({"name": "SongUNet", "resample_filter": [1, 2, 1]}, "3 taps, expected an even number"),
    ({"name": "SongUNet", "embedding_type": "sinus"}, "embedding_type is 'sinus', expected one of"),
])
def test_what_is_wrong_with_a_network_is_said(network, words):
    with pytest.raises(UserError, match=words):
        NETWORKS.make({"image_size": 64, **network})
