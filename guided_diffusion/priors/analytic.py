"""Priors whose score is known exactly, with the UNet's call: model(x_t, t) -> predicted noise [, variance channels]."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from data.dataloader import ImageDataset, ImageFolder, SkimagePhotographs
from guided_diffusion.priors.distributions import Distribution, GaussianMixture, require_dense
from guided_diffusion.priors.gaussians import DiagonalGaussian, FullGaussian, LowRankGaussian, StationaryGaussian
from guided_diffusion.schedule import Schedule
from util.arrays import read_array
from util.command import user_path
from util.config.registry import Count, NonNegative, Positive, Registry
from util.errors import UserError

PRIORS = Registry("prior")                          # name in the model config -> function that makes a `Distribution`
register_prior = PRIORS.register

SKIMAGE = "skimage"                                 # the name that stands for scikit-image's photographs
PHOTOGRAPH = 256                                    # side of scikit-image's photographs before they are cut
NOTHING_LEFT = 1e-12                                # variance that is rounding


class AnalyticPrior(nn.Module):
    """The exact noise predictor eps = (x_t - sqrt(alpha_bar) E[x_0 | x_t]) / sqrt(1 - alpha_bar) of a distribution.

    Args:
        schedule: of the sampler that will call it, so that timesteps can be looked up.
        distribution: of the images.
        learn_sigma: append variance channels for model_var_type "learned_range": the exact variance of each value of
            x_{t-1} given x_t, beta_tilde + c1^2 Var(x_0 | x_t) with c1 the factor of x_0 in its mean.
        image_size: side of the images that it is for; None where it does not matter.
    """

    def __init__(self, schedule: Schedule, distribution: Distribution, learn_sigma: bool = False,
                 image_size: int | None = None):
        super().__init__()
        self.schedule, self.distribution, self.learn_sigma = schedule, distribution, learn_sigma
        self.image_size = image_size

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W), or (B, 2C, H, W) with variance channels."""
        self.check_size(x_t.shape)
        index = self.schedule.index_of(t)
        alpha_bar = self.schedule.at("alphas_cumprod", index, x_t)
        eps = -(1 - alpha_bar).sqrt() * self.distribution.score(x_t, alpha_bar)
        return torch.cat([eps, self.variance_channels(x_t, index)], dim=1) if self.learn_sigma else eps

    def check_size(self, shape: tuple[int, int, int, int]) -> None:
        """UserError unless the prior is for images of `shape` (B, C, H, W)."""
        if self.image_size is not None and tuple(shape[2:]) != (self.image_size, self.image_size):
            raise UserError(f"the images are {shape[2]}x{shape[3]}, but the exact prior is for "
                            f"{self.image_size}x{self.image_size}; change data.image_size or model.image_size")

    def variance_channels(self, x_t: Tensor, index: Tensor) -> Tensor:
        """v for the variances between beta_tilde and beta: (v + 1) / 2 interpolates their logarithms; (B, C, H, W)."""
        ab, beta_tilde, c1, low, high = (self.schedule.at(name, index, x_t) for name in (
            "alphas_cumprod", "posterior_variance", "posterior_mean_coef1", "posterior_log_variance_clipped",
            "log_betas"))
        variance = beta_tilde + c1 ** 2 * self.distribution.x0_variance(x_t, ab)
        return (2 * (variance.log() - low) / (high - low) - 1).expand_as(x_t)


@register_prior("gaussian")
def gaussian(image_size: Count, spectrum: str = "1/f", std: Positive = 0.3, falloff: NonNegative = 2.0,
             mean: float = 0.0, folder: str | None = None) -> StationaryGaussian:
    """A stationary Gaussian, the channels independent.

    Args:
        image_size: side of the images.
        spectrum: "1/f" for variances in proportion to (f^2 + f_0^2)^(-falloff/2) with f the frequency in cycles per
            pixel and f_0 that of one cycle per image; or a .npy file of variances, (H, W) or (3, H, W), in the order of
            the FFT.
        std: of the pixels, for "1/f".
        falloff: 0 for white images.
        mean: of the pixels.
        folder: images whose mean and mean power spectrum take the place of all of these.

    Raises:
        UserError: a folder without two images, a spectrum of another size, or variances that are not positive or not
            those of real images.
    """
    if folder is not None:
        images = folder_of(folder, image_size, least=2)
        mean = images.mean(dim=(0, 2, 3)).view(-1, 1, 1)
        return StationaryGaussian(torch.fft.fft2(images - mean, norm="ortho").abs().square().mean(dim=0), mean)
    if spectrum == "1/f":
        f = torch.fft.fftfreq(image_size, dtype=torch.float64)
        power = (f[:, None] ** 2 + f ** 2 + image_size ** -2) ** (-falloff / 2)
        return StationaryGaussian(std ** 2 * power / power.mean(), mean)
    values = torch.from_numpy(read_array(spectrum, "prior gaussian: spectrum")).double()
    if tuple(values.shape) not in ((image_size, image_size), (3, image_size, image_size)):
        raise UserError(f"prior gaussian: the spectrum in '{spectrum}' is {'x'.join(map(str, values.shape))}, expected "
                        f"{image_size}x{image_size} or 3x{image_size}x{image_size} variances, those of the images' "
                        "Fourier modes")
    return StationaryGaussian(values, mean)


@register_prior("gaussian_lowrank")
def gaussian_lowrank(image_size: Count, folder: str, components: Count = 20,
                     residual: Positive | None = None) -> LowRankGaussian:
    """The mean and the principal components of a folder's images, and white noise.

    Args:
        image_size: side of the images.
        folder: of images that are brought to that size, or skimage, see `folder_of`.
        components: how many.
        residual: standard deviation in every other direction; null for what the components leave of the images.

    Raises:
        UserError: not more images than components, or nothing left for the other directions.
    """
    images = folder_of(folder, image_size, least=components + 1)
    mean, n = images.mean(dim=0), images[0].numel()
    _, s, vt = torch.linalg.svd((images - mean).flatten(1), full_matrices=False)
    variances = s ** 2 / (len(images) - 1)
    left = variances[components:].sum().item() / max(n - components, 1) if residual is None else residual ** 2
    if left < NOTHING_LEFT:
        raise UserError(f"prior gaussian_lowrank: {components} components leave nothing of {len(images)} images, so it "
                        "is not positive definite; ask for fewer components, or set residual")
    return LowRankGaussian(mean, vt[:components].view(-1, *mean.shape), variances[:components], left)


@register_prior("gaussian_mixture")
def gaussian_mixture(image_size: Count, folder: str, components: Count = 3,
                     covariance: Literal["diagonal", "full"] = "diagonal", std: Positive = 0.1,
                     weights: Sequence[float] | None = None) -> GaussianMixture:
    """A Gaussian for each of the groups that k-means finds among a folder's images.

    Args:
        image_size: side of the images.
        folder: of images that are brought to that size, or skimage, see `folder_of`.
        components: how many groups.
        covariance: "diagonal", or "full" for images of up to 4096 values (36 x 36 in colour).
        std: added to each group's own deviations, as the square root of the sum of squares.
        weights: of the groups, in the order of their sizes, the largest first; null for their shares of the images.

    Raises:
        UserError: not more images than components, weights that are not positive or do not sum to 1, or images too
            large for full covariances.
    """
    images = folder_of(folder, image_size, least=components + 1)
    if covariance == "full":
        require_dense(tuple(images.shape[1:]))
    groups = sorted(k_means(images, components), key=len, reverse=True)
    parts = []
    for group in groups:
        mean, offsets = group.mean(dim=0), (group - group.mean(dim=0)).flatten(1)
        if covariance == "full":
            matrix = offsets.mT @ offsets / len(group)
            parts.append(FullGaussian.of(mean, matrix + std ** 2 * torch.eye(len(matrix)).to(matrix)))
        else:
            parts.append(DiagonalGaussian(mean, offsets.square().mean(dim=0).view_as(mean) + std ** 2))
    return GaussianMixture(parts, [len(group) / len(images) for group in groups] if weights is None else weights)


def folder_of(root: str, image_size: int, least: int) -> Tensor:
    """All images of a folder, or the squares that scikit-image's photographs of 256 x 256 are cut into, for "skimage".

    (N, 3, S, S) float64; UserError if there are fewer than `least`.
    """
    images = torch.stack(list(photographs(root, image_size)))
    if root == SKIMAGE:
        squares = images.unfold(2, image_size, image_size).unfold(3, image_size, image_size)
        images = squares.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    if len(images) < least:
        raise UserError(f"the folder '{root}' holds {len(images)} images, expected {least} or more for such a prior; "
                        "give more images, or ask for fewer components")
    return images.double()


def photographs(root: str, image_size: int | None = None) -> ImageDataset:
    """The images of a folder, or scikit-image's photographs whole, for "skimage"; UserError if there are none."""
    return SkimagePhotographs(image_size=PHOTOGRAPH) if root == SKIMAGE else ImageFolder(root, image_size)


def files_read(params: Mapping[str, object]) -> dict[str, Sequence[Path]]:
    """What a prior of these parameters is made from, by the name that they give it: images, or a file of variances."""
    if folder := params.get("folder"):
        return {folder: photographs(folder).paths}
    spectrum = params.get("spectrum", "")
    return {spectrum: [user_path(spectrum)]} if user_path(spectrum).is_file() else {}   # missing: the prior says so


def k_means(images: Tensor, count: int, rounds: int = 20) -> list[Tensor]:
    """`count` groups (N_k, ...) of images (N, ...), N > count, none of them empty; from the images farthest apart."""
    x = images.flatten(1)
    centres = x[:1]
    while len(centres) < count:
        centres = torch.cat([centres, x[torch.cdist(x, centres).amin(1).argmax()][None]])
    for _ in range(rounds):
        nearest = torch.cdist(x, centres).argmin(1)
        centres = torch.stack([x[nearest == k].mean(0) if (nearest == k).any() else centres[k] for k in range(count)])
    return [images[nearest == k] for k in range(count) if (nearest == k).any()]
