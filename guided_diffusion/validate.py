"""Judge a prior: `python -m guided_diffusion.validate --model_config FILE --data FOLDER`.

Validation loss per noise level, and how well the prior's x0_hat denoises beside classical denoisers, on centre crops.
Everything random is a function of the seed and the images' names.
"""

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from guided_diffusion.training.arguments import REFERENCE_PHOTOGRAPHS
from guided_diffusion.training.arguments import parse_validation as parse_arguments
from util.command import check_command_line, choose_device, command, output_folder, run_program

if __name__ == "__main__":                          # before the imports that take seconds
    check_command_line(parse_arguments)

import numpy as np
import torch
from torch import Tensor, nn

from data.dataloader import ImageDataset, get_dataset
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.schedule import Schedule
from guided_diffusion.solvers import ClassicalRestorer, NonLocalMeans, TotalVariation
from guided_diffusion.training.losses import HybridLoss
from guided_diffusion.unet import create_model
from util.config.config import find_file, read_yaml
from util.config.registry import check_arguments
from util.errors import UserError
from util.files import write_atomically
from util.logger import logger
from util.metrics.scores import psnr
from util.metrics.statistics import Summary, describe
from util.seeding import ImageRandomness

REPORT = ("validation.md", "validation.json")
SIGMAS = (0.05, 0.1, 0.2, 0.5)                      # of the noise, on images in [-1, 1]
BINS = 10                                           # of the timesteps, besides t = 0
FACTORS = (0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.3)     # tried for the references' strength, times sigma on [0, 1]

Denoiser = Callable[[Tensor, float], Tensor]        # y (B, 3, H, W), its sigma -> images


def place_for(path: str, overwrite: bool) -> Path:
    """The folder of --out; UserError where it cannot be written, or holds figures that must not be replaced."""
    folder = output_folder(path)
    found = [name for name in REPORT if (folder / name).exists()]
    if found and not overwrite:
        raise UserError(f"--out {path} holds {' and '.join(found)} already; choose another folder, or replace what is "
                        "there with --overwrite")
    return folder


@dataclass(frozen=True)
class Crops:
    """Centre crops (N, 3, s, s) in [-1, 1] on the CPU, and the images' names."""

    names: tuple[str, ...]
    images: Tensor


def centre_crops(dataset: ImageDataset, side: int, limit: int | None = None) -> Crops:
    """The centre of each image at its own resolution; images that are smaller, or cannot be read, are passed over with
    a warning.

    Raises:
        UserError: none is left.
    """
    names, crops = [], []
    for index, name in enumerate(dataset.names[:limit]):
        try:
            image = dataset[index]
        except UserError as error:
            logger.warning(f"{error}; passed over")
            continue
        top, left = ((extent - side) // 2 for extent in image.shape[1:])
        if min(top, left) < 0:
            logger.warning(f"{name} is {image.shape[1]}x{image.shape[2]}, smaller than --crop {side}; passed over")
            continue
        names.append(name)
        crops.append(image[:, top:top + side, left:left + side])
    if not crops:
        raise UserError(f"no image is as large as --crop {side} and can be read; lower it, or give larger images with "
                        "--data")
    return Crops(tuple(names), torch.stack(crops))


@dataclass(frozen=True)
class Level:
    """Timesteps first..last: mean squared error of eps, and their share of the variational bound in bits per
    dimension."""

    first: int
    last: int
    eps_mse: Summary
    bits: Summary


@torch.no_grad()
def validation_loss(model: nn.Module, schedule: Schedule, crops: Crops, draws: int, seed: int, batch_size: int,
                    device: torch.device) -> list[Level]:
    """The loss at t = 0 and in ten equal parts of the other timesteps, averaged over `draws` of t and noise per image.

    Timesteps are stratified: draw j of n is uniform in the j-th n-th of its part.
    """
    loss = HybridLoss(schedule, vlb_weight=0.0)
    edges = np.unique(np.linspace(1, schedule.num_steps, BINS + 1).round().astype(int))
    parts = [(0, 1), *zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    levels = []
    for first, stop in parts:
        scores = []
        for draw in range(draws):
            randomness = ImageRandomness(seed, crops.names, [draw] * len(crops.names))
            u = np.array([rng.random() for rng in randomness.numpy_generators])
            index = torch.from_numpy(first + ((draw + u) / draws * (stop - first)).astype(np.int64))
            noise = randomness.randn_like(crops.images)
            batches = zip(*(x.split(batch_size) for x in (crops.images, index, noise)), strict=True)
            scores += [torch.stack(loss.terms(model, *(x.to(device) for x in batch))[:2]).cpu() for batch in batches]
        mse, bits = torch.cat(scores, dim=1).double()
        names = crops.names * draws
        levels.append(Level(first, stop - 1, describe(mse.tolist(), names),
                            describe((bits * (stop - first)).tolist(), names)))
    return levels


def fractional_timestep(schedule: Schedule, sigma: float) -> float:
    """The t at which sqrt((1 - alpha_bar_t) / alpha_bar_t) = sigma, between timesteps linear in log sigma.

    Raises:
        UserError: the process has no such noise level.
    """
    levels = schedule.sqrt_recipm1_alphas_cumprod
    if not levels[0] <= sigma <= levels[-1]:
        raise UserError(f"sigma {sigma} is outside the noise levels of the schedule, {levels[0]:.3g} to "
                        f"{levels[-1]:.3g}")
    return float(np.interp(np.log(sigma), np.log(levels), np.arange(schedule.num_steps)))


def prior_denoiser(model: nn.Module, schedule: Schedule, batch_size: int, device: torch.device) -> Denoiser:
    """y = x + sigma n -> x0_hat = y - sigma eps(x_t, t), x_t = y / sqrt(1 + sigma^2), t of that noise level."""
    scale = 1000 / schedule.num_train_steps if schedule.rescale_timesteps else 1

    @torch.no_grad()
    def denoise(y: Tensor, sigma: float) -> Tensor:
        t = scale * fractional_timestep(schedule, sigma)
        parts = [part.to(device) for part in y.split(batch_size)]
        eps = [model(part / (1 + sigma ** 2) ** 0.5, part.new_full((len(part),), t))[:, :3].cpu() for part in parts]
        return y - sigma * torch.cat(eps)

    return denoise


def classical_denoiser(restorer: ClassicalRestorer) -> Denoiser:
    """A classical restorer on the operator `noise`."""
    def denoise(y: Tensor, sigma: float) -> Tensor:
        randomness = ImageRandomness(0, [""] * len(y))
        operator = get_operator("noise").prepare(tuple(y.shape), randomness)
        measurement = Measurement(operator, get_noise("gaussian", sigma=sigma), y)
        return restorer.restore(None, create_sampler(), measurement, randomness)

    return denoise


def bm3d_denoiser() -> Denoiser | None:
    """BM3D in colour (Dabov et al., 2007), where the package bm3d is installed."""
    try:
        bm3d = importlib.import_module("bm3d")
    except ImportError:
        return None

    def denoise(y: Tensor, sigma: float) -> Tensor:
        arrays = (y.permute(0, 2, 3, 1).double().numpy() + 1) / 2
        restored = np.stack([bm3d.bm3d_rgb(array, sigma / 2) for array in arrays])
        return torch.from_numpy(restored).permute(0, 3, 1, 2).float() * 2 - 1

    return denoise


def candidates(sigma: float) -> dict[str, list[ClassicalRestorer]]:
    """What is tried of each classical denoiser at noise `sigma` on [-1, 1], which is sigma / 2 on their scale."""
    half = sigma / 2
    return {"total variation": [TotalVariation(weight=f * half) for f in FACTORS],
            "non-local means": [NonLocalMeans(h=f * half, sigma=s * half) for f in FACTORS for s in (0.0, 0.8, 1.0)]}


def noisy(crops: Crops, sigma: float, seed: int) -> Tensor:
    """y = x + sigma n, (N, 3, s, s)."""
    noise = ImageRandomness(seed, crops.names, purpose="noise").randn_like(crops.images)
    return crops.images + sigma * noise


def psnrs(restored: Tensor, truth: Tensor) -> list[float]:
    """PSNR in dB of each image, clipped, on [0, 1]."""
    return [psnr(a, b) for a, b in zip(restored, truth, strict=True)]


def denoising(prior: Denoiser, crops: Crops, reference: Crops, seed: int) -> dict[str, dict[str, Summary]]:
    """Sigma -> denoiser -> PSNR; the classical ones with the parameters that are best on `reference`."""
    table = {}
    for sigma in SIGMAS:
        y, y_reference = noisy(crops, sigma, seed), noisy(reference, sigma, seed)
        denoisers: dict[str, Denoiser] = {"noisy": lambda y, sigma: y, "prior": prior}
        for name, tried in candidates(sigma).items():
            denoisers[name] = max(map(classical_denoiser, tried), key=lambda d: np.mean(psnrs(
                d(y_reference, sigma), reference.images)))
        if (bm3d := bm3d_denoiser()) is not None:
            denoisers["BM3D"] = bm3d
        table[f"{sigma:g}"] = {name: describe(psnrs(denoise(y, sigma), crops.images), crops.names)
                               for name, denoise in denoisers.items()}
        logger.info(f"sigma {sigma:g}: " + ", ".join(f"{name} {score['mean']:.2f} dB"
                                                     for name, score in table[f"{sigma:g}"].items()))
    return table


def markdown(levels: Sequence[Level], table: dict[str, dict[str, Summary]], remark: str) -> str:
    """Both tables."""
    lines = [remark, "", "| t | eps MSE | bound, bits per dimension |", "| --- | --- | --- |"]
    lines += [f"| {level.first if level.first == level.last else f'{level.first}-{level.last}'} | "
              f"{_interval(level.eps_mse, '.4f')} | {_interval(level.bits, '.4f')} |" for level in levels]
    lines += [f"| all | | {sum(level.bits['mean'] for level in levels):.3f} |", "",
              "PSNR in dB of denoising, sigma on [-1, 1]:", ""]
    names = list(next(iter(table.values())))
    lines += [f"| sigma | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 1)}"]
    lines += [f"| {sigma} | {' | '.join(_interval(row[name], '.2f') for name in names)} |"
              for sigma, row in table.items()]
    return "\n".join(lines) + "\n"


def _interval(score: Summary, form: str) -> str:
    bounds = score["ci95"]
    return f"{score['mean']:{form}}" + (f" [{bounds[0]:{form}}, {bounds[1]:{form}}]" if bounds else "")


def load(args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, Schedule, str]:
    """The network, its process with all timesteps, and the checkpoint's path; UserError where they do not fit."""
    config = read_yaml(args.model_config, "model configuration")
    check_arguments(create_model, config, args.model_config)
    path = args.checkpoint or config.get("model_path")
    if not path:
        raise UserError(f"{args.model_config}: model_path is missing; name the weights with --checkpoint")
    model = create_model(**{**config, "model_path": str(find_file(path, "checkpoint"))})
    diffusion = read_yaml(args.diffusion_config, "diffusion configuration")
    check_arguments(create_sampler, diffusion, args.diffusion_config)
    kind = {"model_mean_type": "epsilon", "model_var_type": "learned_range"}
    for key, expected in kind.items():
        if diffusion.get(key, expected) != expected:
            raise UserError(f"{args.diffusion_config}: {key} is '{diffusion[key]}', expected '{expected}', of which "
                            "the loss is")
    sampler = create_sampler(**{**diffusion, "timestep_respacing": ""})
    sampler.check_model_channels(model.out_channels)
    model.check_image_size(args.crop, args.crop)
    return model.eval().requires_grad_(False).to(device), sampler.schedule, path


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Judge the prior; exit status 0, 2 for a mistake, 130 when interrupted."""
    device, folder = choose_device(args.gpu), place_for(args.out, args.overwrite)
    model, schedule, path = load(args, device)
    data = get_dataset("skimage") if args.data == "skimage" else get_dataset("folder", root=args.data)
    others = (get_dataset("skimage", images=REFERENCE_PHOTOGRAPHS) if args.reference_data is None
              else get_dataset("folder", root=args.reference_data))
    crops, reference = centre_crops(data, args.crop, args.limit), centre_crops(others, args.crop)
    levels = validation_loss(model, schedule, crops, args.draws, args.seed, args.batch_size, device)
    prior = prior_denoiser(model, schedule, args.batch_size, device)
    table = denoising(prior, crops, reference, args.seed)
    remark = (f"{Path(path).name} on {len(crops.names)} centre crops of {args.crop} x {args.crop} pixels, seed "
              f"{args.seed}; 95 % intervals over images")
    text = markdown(levels, table, remark)
    result = {"checkpoint": str(path), "images": list(crops.names), "crop": args.crop, "seed": args.seed,
              "draws": args.draws, "loss": [asdict(level) for level in levels], "denoising_psnr": table}
    for name, content in zip(REPORT, (text, json.dumps(result, indent=2) + "\n"), strict=True):
        write_atomically(folder / name, content.encode())
    logger.info(f"\n{text}\n{folder / REPORT[0]} and {REPORT[1]}")
    return 0


if __name__ == "__main__":
    run_program(main)
