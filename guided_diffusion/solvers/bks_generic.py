"""BKS-generic: Tran et al., "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021, deep image priors."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.priors.deep_image_prior import ImagePrior
from guided_diffusion.solvers.blind import BlindDeblurring, CodeSearch, descend, jittered, seeded
from util.config.registry import Count, Natural, NonNegative, Positive
from util.errors import UserError
from util.metrics.perceptual import NETWORKS
from util.metrics.weights import weights_folders

REPORTS = 100
CHANNELS = 128                                      # of the image's deep prior


@register_conditioning_method("bks_generic")
class BlurKernelSpaceGeneric(BlindDeblurring):
    """Blind deblurring: x and k are the outputs of two untrained networks of fixed noise, fitted to y together.

        first half      0.6 P(F(x, k), y) + 1 - SSIM(F(x, k), y) + 5e-5 ||k|| + 0.02 HL(x)
        second half     P(F(x, k), y) + 5e-4 ||k|| + 0.05 HL(x)

    HL(x) = mean (|Sobel gradient of x| ^ 0.66) is the hyper-Laplacian prior of gradients, P a perceptual distance, here
    LPIPS (VGG). Adam, whose rate falls by 0.7 every fifth of the iterations; before that, x is fitted to y and k to the
    mean code, which the authors stored and which is 0 here. The last x is the result. The constants are those of their
    code, the networks of x and k are ours. Their weights were not at hand: the quality has not been measured.

    Args:
        iterations: of both together.
        warm_up: iterations of each by itself.
        lr: of Adam.
        hyper_laplacian: factor of both weights of HL.
        distance: "perceptual", which needs VGG16's weights, or "l2": 100 times the mean square in the place of P.
        wizard: the weights of F.
    """

    def __init__(self, iterations: Count = 5000, warm_up: Natural = 300, lr: Positive = 5e-4,
                 hyper_laplacian: NonNegative = 1.0, distance: Literal["perceptual", "l2"] = "perceptual",
                 wizard: str = "models/GOPRO_woVAE.pth"):
        super().__init__(wizard)
        self.iterations, self.warm_up, self.lr = iterations, warm_up, lr
        self.hyper_laplacian, self.distance = hyper_laplacian, distance
        self._judge: nn.Module | Callable = mean_square

    def load(self) -> None:
        """Read the weights of F and, for the perceptual distance, of LPIPS, once."""
        super().load()
        if self.distance == "perceptual" and self._judge is mean_square:
            _, file, build = NETWORKS["lpips_vgg"]
            try:
                self._judge = build(file.find(weights_folders())).eval()
            except UserError as error:
                raise UserError(f"conditioning method '{self.name}': distance perceptual needs the weights of VGG16: "
                                f"{error}, or set distance: l2") from None

    def num_steps(self, sampler: Sampler) -> int:
        """How often the state is reported."""
        return min(REPORTS, self.iterations)

    def reports(self, y: Tensor, code_shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
        code = CodeSearch(code_shape, self.lr, generator, y.device)
        image = seeded(lambda: ImagePrior(min(y.shape[2:]), channels=CHANNELS), generator, y.device)
        noise = torch.randn(1, CHANNELS, *y.shape[2:], generator=generator).to(y.device)
        adam = torch.optim.Adam(image.parameters(), self.lr)
        with torch.enable_grad():
            code.warm_up(self.warm_up)
            for _ in range(self.warm_up):
                descend(adam, F.mse_loss(image(jittered(noise, generator)), y))
        both = torch.optim.Adam([*image.parameters(), *code.network.parameters()], self.lr)
        decay = torch.optim.lr_scheduler.StepLR(both, max(1, self.iterations // 5), 0.7)
        steps, done = min(REPORTS, self.iterations), 0
        for report in range(1, steps + 1):
            while done < self.iterations * report // steps:
                with torch.enable_grad():
                    x, k = image(jittered(noise, generator)), code()
                    descend(both, self.loss(x, k, y, first=2 * done < self.iterations))
                decay.step()
                done += 1
            yield x.detach()

    def loss(self, x: Tensor, k: Tensor, y: Tensor, first: bool) -> Tensor:
        """What is minimised in the first or the second half."""
        blurred = self.blurred(x, k)
        judge = self._judge if self._judge is mean_square else partial(self._judge.to(y.device), normalize=True)
        far, sparse = judge(blurred, y).mean(), self.hyper_laplacian * hyper_laplacian(x)
        if not first:
            return far + 5e-4 * k.norm() + 0.05 * sparse
        from torchmetrics.functional.image import structural_similarity_index_measure  # takes seconds

        return 0.6 * far + 1 - structural_similarity_index_measure(blurred, y, data_range=1.0) + (
            5e-5 * k.norm() + 0.02 * sparse)


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """100 times the mean squared difference."""
    return 100 * F.mse_loss(a, b)


def hyper_laplacian(x: Tensor) -> Tensor:
    """The mean of (gx^2 + gy^2)^0.33 over pixels and channels, gx and gy by Sobel's filters on reflected borders."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])
    filters = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    gradients = F.conv2d(F.pad(x.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="reflect"), filters)
    return (gradients.square().sum(1) + 1e-8).pow(0.33).mean()
