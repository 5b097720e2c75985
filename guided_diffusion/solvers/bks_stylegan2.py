"""BKS-styleGAN2: Tran et al., "Explore Image Deblurring via Encoded Blur Kernel Space", CVPR 2021, with a generator."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.method import register_conditioning_method
from guided_diffusion.priors.stylegan2 import Generator, load_generator
from guided_diffusion.solvers.blind import BlindDeblurring, CodeSearch, descend
from util.config.registry import Count, Positive
from util.errors import UserError

SLOPE = 0.2                                         # of the mapping's last layer
CHUNK = 10000                                       # z that are mapped at once
NOISE_MAPS = 5                                      # that are optimised, of the coarsest layers


@register_conditioning_method("bks_stylegan2")
class BlurKernelSpaceStyleGAN2(BlindDeblurring):
    """Blind deblurring of faces, 256 x 256: x = G(w, n), G a trained StyleGAN2, and k of a deep prior, by turns.

        w_i   = LeakyReLU_0.2(std v_i + mean),   v_i on a sphere, i = 1..14; mean and std those of LeakyReLU_5 of w
        loss  = 100 mean (F(x, k) - y)^2 + 0.1 GEOCROSS(v) + 1e-4 ||k||
        GEOCROSS(v) = mean over i, j of 512 (2 atan2(||v_i - v_j||, ||v_i + v_j||))^2 / 6

    `epochs` times `image_steps` of v and of the 5 coarsest noise maps, then `code_steps` of k. v and the maps stay on
    the spheres that they begin on: Adam of `lr`, then back to the old length; its rate rises to `lr` and falls again in
    every round (Menon et al., 2020, "PULSE"). k has Adam of 5e-4, times 0.7 after every fifth of the epochs; before,
    150 steps towards the mean code, 0. The x of least loss at the ends of half epochs is the result. The constants are
    those of the authors' code. Their weights were not at hand: the quality has not been measured.

    Args:
        epochs, image_steps, code_steps: as above.
        lr: of v and the noise maps.
        mapped: how many w mean and std are taken from.
        wizard: the weights of F.
        generator: those of G.
    """

    def __init__(self, epochs: Count = 25, image_steps: Count = 300, code_steps: Count = 200, lr: Positive = 0.2,
                 mapped: Count = 1_000_000, wizard: str = "models/GOPRO_woVAE.pth",
                 generator: str = "models/stylegan2_ffhq_256.pt"):
        super().__init__(wizard)
        self.epochs, self.image_steps, self.code_steps, self.lr = epochs, image_steps, code_steps, lr
        self.mapped, self.generator = mapped, generator
        self._generator: Generator | None = None

    def load(self) -> None:
        """Read the weights of F and G, once."""
        super().load()
        if self._generator is None:
            try:
                self._generator = load_generator(self.generator)
            except UserError as error:
                raise UserError(f"conditioning method '{self.name}': {error}") from None

    def num_steps(self, sampler: Sampler) -> int:
        """Two per epoch."""
        return 2 * self.epochs

    def reports(self, y: Tensor, code_shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
        network = self._generator.to(y.device)
        if tuple(y.shape[2:]) != (network.size, network.size):
            raise UserError(f"conditioning method '{self.name}': found images of {y.shape[2]}x{y.shape[3]}, expected "
                            f"{network.size}x{network.size}, which the generator makes; set data.image_size")
        mean, std = statistics(network, self.mapped, y.device)

        def draw(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=generator).to(y.device)

        v = draw(network.num_styles, network.style_length).requires_grad_()
        maps = [draw(*shape) for shape in network.noise_shapes()]
        free = [v, *(noise.requires_grad_() for noise in maps[:NOISE_MAPS])]
        code = CodeSearch(code_shape, 5e-4, generator, y.device)
        decay = torch.optim.lr_scheduler.StepLR(code.adam, max(1, self.epochs // 5), 0.7)

        def loss(k: Tensor) -> tuple[Tensor, Tensor]:
            x = (network(F.leaky_relu(std * v + mean, SLOPE), maps) + 1) / 2
            return 100 * F.mse_loss(self.blurred(x, k), y) + 0.1 * geocross(v) + 1e-4 * k.norm(), x

        best, least = y, math.inf
        with torch.enable_grad():
            code.warm_up(150)
        for _ in range(self.epochs):
            for half in ("image", "code"):
                with torch.enable_grad():
                    if half == "image":
                        self.move(free, lambda: loss(code().detach())[0])
                    else:
                        for _ in range(self.code_steps):
                            descend(code.adam, loss(code())[0])
                        decay.step()
                found, x = loss(code())
                if found < least:
                    best, least = x.detach(), found.item()
                yield best

    def move(self, free: list[Tensor], loss: Callable[[], Tensor]) -> None:
        """`image_steps` of v and the noise maps, each on its spheres, down the gradient of loss()."""
        lengths = [length(tensor).detach() for tensor in free]
        adam = torch.optim.Adam(free, self.lr)
        rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: one_cycle(step / self.image_steps))
        for _ in range(self.image_steps):
            descend(adam, loss())
            rate.step()
            with torch.no_grad():
                for tensor, radius in zip(free, lengths, strict=True):
                    tensor.mul_(radius / length(tensor))


def one_cycle(progress: float) -> float:
    """The rate over its largest: 0.1 to 1 and back within 0.9 of a round, then towards 0.001."""
    if progress < 0.9:
        return 0.1 + 0.9 * (1 - abs(progress / 0.45 - 1))
    return 0.1 + (progress - 0.9) / 0.1 * (0.001 - 0.1)


def length(x: Tensor) -> Tensor:
    """Of each style (1, n, C) -> (1, n, 1), or of a noise map (1, 1, H, W) -> (1, 1, 1, 1)."""
    return (x.square().sum(tuple(range(2, x.dim())), keepdim=True) + 1e-9).sqrt()


def geocross(v: Tensor) -> Tensor:
    """How far apart styles are (PULSE): the mean squared angle between all pairs of v (1, n, C), times 512 / 6."""
    a, b = v[:, :, None], v[:, None]
    apart, along = ((c.square().sum(-1) + 1e-9).sqrt() for c in (a - b, a + b))
    return (512 * (2 * torch.atan2(apart, along)) ** 2).mean() / 6


@torch.no_grad()
def statistics(network: Generator, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of `count` w of random z, before the last leaky ReLU: of LeakyReLU_5 of w."""
    generator, total, squares = torch.Generator().manual_seed(0), 0, 0
    for first in range(0, count, CHUNK):
        z = torch.randn(min(CHUNK, count - first), network.style_length, generator=generator).to(device)
        w = F.leaky_relu(network.mapping(z), 1 / SLOPE).double()
        total, squares = total + w.sum(0), squares + w.square().sum(0)
    mean = total / count
    return mean.float(), (squares / count - mean ** 2).clamp_min(0).sqrt().float()
