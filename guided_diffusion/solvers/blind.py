"""What the blind deblurring methods of Tran et al. (CVPR 2021) share: the blur is a code k of a network F."""

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.base import Noise, Operator
from guided_diffusion.measurements.blur import Blur
from guided_diffusion.measurements.gopro_blur import GoproBlurOperator
from guided_diffusion.measurements.kernel_wizard import CODE_CHANNELS, STRIDE, KernelWizard
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.measurements.nonlinear_blur import NonlinearBlurOperator
from guided_diffusion.priors.deep_image_prior import CodePrior
from guided_diffusion.solvers.base import Iteration, Solver
from util.checkpoint import load_state_dict
from util.errors import UserError
from util.fetch import find_weights
from util.seeding import ImageRandomness

WHERE_TO_GET = "the README of github.com/VinAIResearch/blur-kernel-space-exploring links GOPRO_woVAE.pth"
JITTER = 1e-3                                       # of the noise that a deep image prior is fed with


class BlindDeblurring(Solver):
    """Image x and code k of y = F(x, k) + n from y alone: the operator that made y is not looked at.

    Images are optimised one by one, in turns; x is on [0, 1], of sides that are multiples of 128. The start of every
    weight comes from the image's own stream.

    Args:
        wizard: the weights of F, GOPRO_woVAE.pth in the paper.
    """

    needs_prior = False
    needs = "a blurred image (gaussian_blur, motion_blur, blur, gopro_blur or nonlinear_blur)"

    def __init__(self, wizard: str):
        self.wizard = wizard
        self._blur: nn.Module | None = None

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        return isinstance(operator, (Blur, GoproBlurOperator, NonlinearBlurOperator))

    def check(self, operator: Operator, noiser: Noise | None = None) -> None:
        """As every method; also UserError if weights cannot be read."""
        super().check(operator, noiser)
        self.load()

    def load(self) -> None:
        """Read the weights, once."""
        if self._blur is None:
            try:
                blur = KernelWizard()
                load_state_dict(blur, find_weights(self.wizard, remedy=""), select=_without_encoder)
            except UserError as error:
                raise UserError(f"conditioning method '{self.name}': {error}; {WHERE_TO_GET}") from None
            self._blur = blur.eval().requires_grad_(False)

    @abstractmethod
    def reports(self, y: Tensor, code_shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
        """x (1, 3, H, W) on [0, 1], `num_steps` times, of one measurement y (1, 3, H, W) on [0, 1]."""

    def iterates(self, prior: Callable | None, sampler: Sampler, measurement: Measurement,
                 randomness: ImageRandomness) -> Iterator[tuple[Iteration, Tensor]]:
        y = (measurement.y.float() + 1) / 2
        height, width = y.shape[2:]
        if height % STRIDE or width % STRIDE:
            raise UserError(f"conditioning method '{self.name}': found images of {height}x{width}, expected sides that "
                            f"are multiples of {STRIDE}; set data.image_size to 128 or 256")
        self.load()
        self._blur.to(y.device)
        shape = (1, CODE_CHANNELS, height // STRIDE, width // STRIDE)
        seeds = [int(torch.randint(2 ** 31, (), generator=g, device=g.device)) for g in randomness.generators]
        runs = [self.reports(y[b:b + 1], shape, torch.Generator().manual_seed(seed)) for b, seed in enumerate(seeds)]
        for index in reversed(range(self.num_steps(sampler))):
            x = (2 * torch.cat([next(run) for run in runs]).clamp(0, 1) - 1).to(measurement.y.dtype)
            yield Iteration(index, x), x

    def blurred(self, x: Tensor, code: Tensor) -> Tensor:
        """F(x, k), (1, 3, H, W)."""
        return self._blur(x, code)


def _without_encoder(found: dict) -> dict:
    """The tensors of F: the encoder, which finds the code of a pair of images, plays no part."""
    return {name: tensor for name, tensor in found.items() if not str(name).startswith("kernel_extractor.")}


def seeded(build: Callable[[], nn.Module], generator: torch.Generator, device: torch.device) -> nn.Module:
    """A new network in training mode whose first weights come from `generator`."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(int(torch.randint(2 ** 31, (), generator=generator)))
        return build().to(device)


class CodeSearch:
    """A deep image prior of the code k, with the noise that it is fed with, jittered, and its optimiser.

    Args:
        shape: of k.
        lr: of Adam.
        generator: of the weights and the noise.
    """

    def __init__(self, shape: tuple[int, ...], lr: float, generator: torch.Generator, device: torch.device):
        self.network = seeded(lambda: CodePrior(shape), generator, device)
        self.noise, self.generator = torch.randn(1, 64, generator=generator).to(device), generator
        self.adam = torch.optim.Adam(self.network.parameters(), lr)

    def __call__(self) -> Tensor:
        """k of `shape`."""
        return self.network(jittered(self.noise, self.generator))

    def warm_up(self, steps: int) -> None:
        """Towards k = 0, the mean of all codes."""
        for _ in range(steps):
            descend(self.adam, self().square().mean())


def jittered(noise: Tensor, generator: torch.Generator) -> Tensor:
    """The noise, moved a little."""
    return noise + JITTER * torch.randn(noise.shape, generator=generator).to(noise.device)


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> float:
    """A step down the gradient of `loss`, which is returned."""
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()
