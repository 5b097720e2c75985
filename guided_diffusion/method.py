"""What every restoration method is, and the registry that `conditioning.method` names one in."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from guided_diffusion.gaussian_diffusion import Sampler
from guided_diffusion.measurements.base import LinearOperator, Noise, Operator, kind_of
from guided_diffusion.measurements.measurement import Measurement
from util.config.registry import Registry
from util.errors import UserError
from util.logger import count
from util.seeding import ImageRandomness


class Method(ABC):
    """Measurement -> restored images. `__init__` lists the YAML's `params`."""

    name: str                                       # set by the registry
    needs_prior = True                              # a network; without it, `restore` is called with prior None
    needs_exact_prior = False                       # one whose distribution is known, `prior` of the model config
    needs_linear = False                            # transpose / pinv / project of the operator
    needs = "a linear operator"                     # what `serves` asks for, in words
    guided = ""                                     # which steps `guides` is about, in words, and what makes them more

    @classmethod
    def serves(cls, operator: Operator, noiser: Noise | None = None) -> bool:
        """Whether methods of this class can work with `operator` and, where one is given, `noiser`."""
        return isinstance(operator, LinearOperator) or not cls.needs_linear

    def check(self, operator: Operator, noiser: Noise | None = None) -> None:
        """Raise UserError, before anything is restored, if this method cannot work with `operator` or `noiser`.

        The message names the methods that can.
        """
        if not self.serves(operator, noiser):
            task = f"'{operator.name}'" + (f" with noise '{noiser.name}'" if noiser and self.serves(operator) else "")
            serving = [name for name in CONDITIONING_METHODS if CONDITIONING_METHODS[name].serves(operator, noiser)
                       and CONDITIONING_METHODS[name].needs_exact_prior <= self.needs_exact_prior]
            raise UserError(f"conditioning method '{self.name}' needs {self.needs}, found {task}; methods that serve "
                            f"{task}: {', '.join(serving)}")

    def guides(self, sampler: Sampler) -> bool:
        """Whether the measurement plays a part in any step of `sampler`."""
        return True

    def check_process(self, sampler: Sampler) -> None:
        """Raise UserError, before anything is restored, if this method would ignore the measurement."""
        if not self.guides(sampler):
            raise UserError(f"conditioning method '{self.name}' would guide none of {count(sampler.num_steps, 'step')} "
                            f"of sampler '{sampler.name}'{self.guided and f'; it guides {self.guided}'}")

    def num_steps(self, sampler: Sampler) -> int:
        """How often `restore` calls back for each image."""
        return sampler.num_steps

    def num_evaluations(self, sampler: Sampler) -> int:
        """How often `restore` evaluates the network for each image, at most; the steps where there is no network."""
        return self.num_steps(sampler)

    def check_state(self, x: object, like: Tensor) -> None:
        """Raise UserError unless x has shape and dtype of the state `like` (B, C, H, W)."""
        if not isinstance(x, Tensor) or x.shape != like.shape or x.dtype != like.dtype:
            raise UserError(f"conditioning method '{self.name}' gives {kind_of(x)} as the next state, expected "
                            f"{kind_of(like)}")

    @contextmanager
    def differentiated(self) -> Iterator[None]:
        """A block whose gradients fail with a UserError where there is nothing to take them of."""
        try:
            yield
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise UserError(f"conditioning method '{self.name}' takes a gradient of what has none; set needs_grad = "
                            "True in its class, compute the distance within torch.enable_grad(), and see that the "
                            "operator's forward is made of differentiable functions of torch") from error

    @abstractmethod
    def restore(self, prior: Callable | None, sampler: Sampler, measurement: Measurement, randomness: ImageRandomness,
                callback: Callable | None = None) -> Tensor:
        """Return the restored images (B, C, H, W) in [-1, 1].

        Args:
            prior: prior(x_t, t (B,)) -> (B, C or 2C, H, W).
            sampler: the reverse process.
            randomness: the streams of the samples, one per image.
            callback: callback(step, x, distance) after every step, `step` with `index` (0 is the last) and `x0_hat`.
        """


CONDITIONING_METHODS = Registry("conditioning method", Method)
register_conditioning_method = CONDITIONING_METHODS.register
