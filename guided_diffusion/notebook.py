"""Restorations in a notebook: the parts of `sample_condition.py` with the same names, seeds and bytes, and no files.

    from guided_diffusion import degrade, load_prior, restore

    degraded = degrade("photograph.jpg", {"name": "super_resolution", "scale_factor": 4}, noise=0.05, size=128)
    restoration = restore(degraded, load_prior(), "dpps", num_samples=4)
    restoration                                     # pictures and scores, as the last line of a cell

Whatever a YAML file names is given as there: a name, or a mapping of a name and its parameters. Mistakes raise
`UserError`, with the sentences of the command line.
"""

import base64
import html
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.dataloader import ARRAY_SUFFIX, Side, load_array, unique_names
from guided_diffusion.gaussian_diffusion import Sampler, create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS, Measurement, Noise, Operator
from guided_diffusion.measurements.sources import warn_of_observed
from guided_diffusion.measurements.trial import check_measurement
from guided_diffusion.method import Method
from guided_diffusion.nn import Network
from guided_diffusion.priors.analytic import AnalyticPrior
from guided_diffusion.priors.load import complete_process
from guided_diffusion.priors.load import load_prior as load_network
from guided_diffusion.priors.tiling import PaddedPrior, TiledPrior
from guided_diffusion.restoration.catalogue import METHODS
from util.command import DEFAULT_PRECISION, MOST_SAMPLES, PRECISIONS, choose_device, user_path
from util.config.config import DEMO, read_yaml
from util.config.registry import Bounds, Count, check_arguments
from util.errors import UserError
from util.files import content_of
from util.img_utils import central_square, from_pillow, load_image, to_uint8
from util.logger import count, logger
from util.metrics.scores import Metrics, Scores
from util.seeding import ImageRandomness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")                 # without ipywidgets the bar is text
    from tqdm.auto import tqdm

__all__ = ["Degraded", "Restoration", "UserError", "degrade", "load_prior", "observe", "restore"]

Named = str | Mapping[str, object]                  # "ps", or {"name": "ps", "scale": 0.3}
Picture = str | Path | Image.Image | np.ndarray | Tensor
ROW = 6                                             # samples that are shown
CELL = 192                                          # pixels of a picture that is shown, at least


@dataclass(frozen=True)
class Degraded:
    """A photograph and how it was, or will be, measured.

    Attributes:
        image: the clean image (3, H, W) in [-1, 1]; what was observed, without a batch axis, where `truth` is None.
        truth: the clean image, None where nobody knows it.
        seed, name: what all random numbers of the measurement are drawn from.
    """

    image: Tensor
    truth: Tensor | None
    operator: Operator
    noiser: Noise
    seed: int
    name: str

    def measure(self, num_samples: int = 1, device: torch.device | str = "cpu") -> tuple[Measurement, ImageRandomness]:
        """The measurement, once per posterior sample (the same for all), and the samples' random streams."""
        randomness = ImageRandomness(self.seed, [self.name] * num_samples, range(num_samples), device=device)
        batch = self.image.to(device).expand(num_samples, *self.image.shape)
        operator = self.operator.to(device)
        if self.truth is not None:
            return Measurement.simulate(operator, self.noiser, batch, randomness), randomness
        size = operator.image_size_of(batch.shape[1:])
        if size is None:
            raise UserError(f"operator '{operator.name}' does not tell the size of the images from measurements of "
                            f"{list(batch.shape[1:])}; restore them with sample_condition.py and measurement.observed")
        return Measurement.from_data(operator, self.noiser, batch, (num_samples, 3, *size), randomness), randomness

    @property
    def picture(self) -> Tensor:
        """The measurement in image space, (3, H, W) in [-1, 1]: what is shown, and scored as the input."""
        return self.measure()[0].lift()[0].cpu()

    def _repr_html_(self) -> str:
        shown = {"truth": self.truth, "measurement": self.picture}
        return _figures({title: x for title, x in shown.items() if x is not None})


@dataclass(frozen=True)
class Restoration:
    """What a method made of a measurement.

    Attributes:
        samples: (K, 3, H, W) in [-1, 1], not clipped.
        degraded: what was restored.
        measurement: the same with y, K entries.
        distances, chi_squares: (K,), the data misfit of each sample, see `Measurement`.
        scores: of each sample, and of the measurement as it is lifted; None where nobody knows the truth.
        score_of_mean: of the mean of the samples.
    """

    samples: Tensor
    degraded: Degraded
    measurement: Measurement
    distances: Tensor
    chi_squares: Tensor
    scores: Sequence[Scores] | None = None
    score_of_mean: Scores | None = None
    score_of_input: Scores | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of the samples, (3, H, W)."""
        return self.samples.mean(0)

    @property
    def std(self) -> Tensor:
        """The standard deviation of the samples, (3, H, W); zeros for one sample."""
        return self.samples.std(0, correction=0) if len(self.samples) == 1 else self.samples.std(0)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean PSNR (dB), SSIM and ST-LPIPS of the samples, those of their mean and of the input; the mean chi-square.
        """
        found = {"chi_square": float(self.chi_squares.mean())}
        if self.scores is not None:
            for name in ("psnr", "ssim", "st_lpips"):
                found[name] = float(np.mean([getattr(scores, name) for scores in self.scores]))
                found[f"{name}_of_mean"] = getattr(self.score_of_mean, name)
                found[f"{name}_input"] = getattr(self.score_of_input, name)
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def save(self, path: str | Path, sample: int = 0) -> None:
        """Write a sample as a picture, by the fixed map of [-1, 1] to 8 bits; UserError where that cannot be."""
        if sample not in range(len(self.samples)):
            raise UserError(f"sample is {sample!r:.40}, expected 0 to {len(self.samples) - 1}")
        try:
            Image.fromarray(to_uint8(self.samples[sample])).save(user_path(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}; give a file name "
                            "such as restored.png, in a folder that is there") from None

    def _repr_html_(self) -> str:
        shown: dict[str, Tensor | None] = {"truth": self.degraded.truth, "measurement": self.degraded.picture}
        shown |= {f"sample {k}": x for k, x in enumerate(self.samples[:ROW])}
        if len(self.samples) > 1:
            spread = self.std.mean(0, keepdim=True).expand(3, -1, -1)
            shown |= {"mean": self.mean, "standard deviation": 2 * spread / spread.max().clamp_min(1e-12) - 1}
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return _figures({title: x for title, x in shown.items() if x is not None}) + f"<p>{html.escape(numbers)}</p>"


def load_prior(model_config: str | Path | Mapping[str, object] = DEMO["model"], gpu: int | None = None,
               precision: Literal[PRECISIONS] = DEFAULT_PRECISION, tile: Count | None = None) -> nn.Module:
    """A network with its checkpoint, frozen, for images of any size: model(x_t, t).

    Args:
        model_config: the YAML file, or its content.
        gpu: index; None for GPU 0 where there is one, else the CPU.
        precision: of the network, see `util.command.PRECISIONS`.
        tile: show the network windows of this side.

    Raises:
        UserError: as the command line.
    """
    _check(load_prior, locals())
    given = isinstance(model_config, Mapping)
    options = model_config if given else read_yaml(model_config, "model configuration")
    return load_network(options, None, tile, precision, choose_device(gpu))


def degrade(image: Picture, operator: Named | Operator, noise: float | Named | Noise = "clean",
            size: Side | None = None, seed: int = 0, name: str | None = None) -> Degraded:
    """A photograph to be measured: y = A(x) + n.

    Args:
        image: a file, a PIL image, an array (H, W, 3) or (H, W) of 8-bit values or of numbers in [0, 1], or a tensor
            (3, H, W) in [-1, 1].
        operator: a name, a mapping of a name and parameters, or an operator.
        noise: a sigma on [-1, 1], a name, a mapping of a name and parameters, or a noise model.
        size: crop to the central square and resize to this side.
        seed: of masks, kernels and noise.
        name: of the image, the other half of what its random numbers are drawn from; by default the file's.

    Raises:
        UserError: the image cannot be read, or an unknown name or a wrong parameter.
    """
    _check(degrade, locals())
    x = _image(image, size)
    return Degraded(x, x, _operator(operator), _noise(noise), seed, _name(image, name))


def observe(y: Picture, operator: Named | Operator, noise: float | Named | Noise = "clean", seed: int = 0,
            name: str | None = None) -> Degraded:
    """A photograph that is already degraded, or other measurements; nobody knows the truth. Arguments as `degrade`.

    Args:
        y: a photograph, or, without a batch axis, a tensor on the operator's own scale (that of pictures is [-1, 1]);
            where measurements are no pictures, such as Fourier coefficients, also an array or a .npy file of them.
    """
    _check(observe, locals())
    operator = _operator(operator)
    observed = Degraded(_measured(y, operator), None, operator, _noise(noise), seed, _name(y, name))
    warn_of_observed(observed.name, *(replace(observed, seed=other).measure()[0] for other in (seed, seed + 1)))
    return observed


def restore(degraded: Degraded, prior: Callable | None, method: Named | Method = "dpps",
            num_samples: Annotated[int, Bounds(least=1, most=MOST_SAMPLES)] = 1,
            diffusion: str | Path | Mapping[str, object] | Sampler = DEMO["diffusion"],
            progress: bool = True) -> Restoration:
    """Restore a degraded photograph, with `num_samples` posterior samples in one batch.

    Args:
        prior: of `load_prior`, or any model(x_t, t (B,)) -> (B, 3 or 6, H, W); None for methods that need none.
        method: a name, a mapping of a name and parameters, or a method.
        diffusion: the reverse process: a YAML file, its content, or a sampler.
        progress: show a bar.

    Raises:
        UserError: an unknown name, a wrong parameter, or a method that cannot serve the operator or the noise.
    """
    _check(restore, locals())
    method = method if isinstance(method, Method) else METHODS.make(method)
    degraded.noiser.check(degraded.operator)
    method.check(degraded.operator, degraded.noiser)
    if method.needs_prior and prior is None:
        raise UserError(f"method '{method.name}' needs a prior, found None; give one, such as load_prior()")
    sampler = diffusion if isinstance(diffusion, Sampler) else _sampler(diffusion, prior)
    method.check_process(sampler)
    if isinstance(prior, AnalyticPrior):            # whose variances are those of the process
        prior = AnalyticPrior(sampler.schedule, prior.distribution, sampler.learned_variance, prior.image_size)
    tensors = (*prior.parameters(), *prior.buffers()) if isinstance(prior, nn.Module) else ()
    device = tensors[0].device if tensors else torch.device("cpu")
    measurement, randomness = degraded.measure(num_samples, device)
    check_measurement(measurement)
    with tqdm(total=method.num_steps(sampler), desc="Restoring", unit=" steps", disable=not progress) as bar:
        samples = method.restore(prior if method.needs_prior else None, sampler, measurement, randomness,
                                 lambda step, x, distance: bar.update())
    samples = measurement.finish(samples).cpu()
    if diverged := [k for k, x in enumerate(samples) if not x.isfinite().all()]:
        logger.warning(f"{len(diverged)} of {count(num_samples, 'sample')} diverged (NaN or infinity), probably too "
                       f"large a step for this noise level: try a smaller scale of '{method.name}'")
    with torch.no_grad():
        misfit = {"distances": measurement.distance(samples.to(device)).cpu(),
                  "chi_squares": measurement.chi_square(samples.to(device)).cpu()}
    if (truth := degraded.truth) is None:
        return Restoration(samples, degraded, measurement, **misfit)
    metrics = Metrics(device, networks=["st_lpips"])
    return Restoration(samples, degraded, measurement, **misfit, scores=[metrics(x, truth) for x in samples],
                       score_of_mean=metrics(samples.mean(0), truth), score_of_input=metrics(degraded.picture, truth))


def _image(image: Picture, size: int | None) -> Tensor:
    """(3, H, W) float32 in [-1, 1], a copy."""
    if isinstance(image, (str, Path)):
        return load_image(user_path(image), size)
    if isinstance(image, Image.Image):
        x = from_pillow(image)
    else:
        x = _from_array(image) if isinstance(image, np.ndarray) else _from_tensor(image)
    return x if size is None else central_square(x, size)


def _from_array(image: np.ndarray) -> Tensor:
    top = 255 if image.dtype == np.uint8 else 1
    values = np.stack([image] * 3, axis=-1) if image.ndim == 2 else image
    real = image.size and image.dtype.kind in "buif"
    if not real or values.ndim != 3 or values.shape[-1] != 3 or not 0 <= values.min() <= values.max() <= top:
        limits = f", {image.min():g} to {image.max():g}" if real else ""
        raise UserError(f"the image is an array of shape {list(image.shape)}, {image.dtype}{limits}; expected "
                        "(H, W, 3) or (H, W) of uint8, or of numbers from 0 to 1")
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1).contiguous() / (top / 2) - 1


def _from_tensor(image: Tensor) -> Tensor:
    real = image.numel() and not image.is_complex()
    if not real or image.dim() != 3 or len(image) != 3 or not -1 <= image.min() <= image.max() <= 1:
        limits = f", {float(image.min()):g} to {float(image.max()):g}" if real else ""
        raise UserError(f"the image is a tensor of shape {list(image.shape)}, {image.dtype}{limits}; expected "
                        "(3, H, W) in [-1, 1]")
    _warn_of_unit_scale(image)
    return image.detach().to(torch.float32, copy=True)


def _warn_of_unit_scale(x: Tensor) -> None:
    """Warn of a picture without a value below 0."""
    if 0 <= x.min() < x.max() <= 1:
        logger.warning(f"the tensor has values from {float(x.min()):g} to {float(x.max()):g}, but pictures are on "
                       "[-1, 1]; if these are on [0, 1], as torchvision makes them, give 2 x - 1")


def _measured(y: Picture, operator: Operator) -> Tensor:
    """Measurements (...) float32, a copy: pictures on [-1, 1], other numbers as they are."""
    if isinstance(y, (str, Path)) and Path(y).suffix.lower() == ARRAY_SUFFIX:
        return load_array(user_path(y))
    if isinstance(y, np.ndarray) and not operator.pictures:
        y = torch.as_tensor(y.astype(np.float32) if y.dtype.kind in "buif" else y.astype(np.complex64))
    if not isinstance(y, Tensor):
        return _image(y, None)
    if not y.is_floating_point() or not y.numel() or not y.isfinite().all():
        raise UserError(f"the measurement is of shape {list(y.shape)}, {y.dtype}; expected finite floating-point "
                        "numbers, complex ones as pairs (torch.view_as_real)")
    if operator.pictures and y.dim() != 3:
        raise UserError(f"the measurement is of shape {list(y.shape)}; expected a picture (3, H, W), or (1, H, W) "
                        "where it is grey, without a batch axis")
    if operator.pictures:
        _warn_of_unit_scale(y)
    return y.detach().to(torch.float32, copy=True)


def _name(image: Picture, name: str | None) -> str:
    """That of the command line for a file in the folder that it is given."""
    if name is not None:
        return name
    return unique_names([Path(Path(image).name)])[0] if isinstance(image, (str, Path)) else "image"


def _operator(operator: Named | Operator) -> Operator:
    return operator if isinstance(operator, Operator) else OPERATORS.make(operator)


def _noise(noise: float | Named | Noise) -> Noise:
    if isinstance(noise, Real):
        return NOISES.build("gaussian", sigma=noise)
    return noise if isinstance(noise, Noise) else NOISES.make(noise)


def _check(function: Callable, given: dict[str, object]) -> None:
    """UserError unless the arguments are of the types and in the ranges of the annotations; anything is a seed."""
    check_arguments(function, {name: value for name, value in given.items() if name != "seed"}, function.__name__)


def _sampler(diffusion: str | Path | Mapping[str, object], prior: Callable | None) -> Sampler:
    options = diffusion if isinstance(diffusion, Mapping) else read_yaml(diffusion, "diffusion configuration")
    check_arguments(create_sampler, dict(options), "diffusion config")
    while isinstance(prior, (PaddedPrior, TiledPrior)):
        prior = prior.model
    return create_sampler(**complete_process(prior.process if isinstance(prior, Network) else {}, options))


def _figures(pictures: Mapping[str, Tensor]) -> str:
    """Pictures (3, H, W) in [-1, 1] side by side, with their titles below."""
    cells = []
    for title, x in pictures.items():
        picture = content_of(partial(Image.fromarray(to_uint8(x)).save, format="png"))
        source = base64.b64encode(picture).decode()
        cells.append(f'<figure style="margin:0"><img src="data:image/png;base64,{source}" alt="{html.escape(title)}" '
                     f'style="width:{max(CELL, x.shape[2])}px;image-rendering:pixelated"><figcaption>'
                     f"{html.escape(title)}</figcaption></figure>")
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(cells)}</div>'
