"""Operator, noise model and y bound together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from guided_diffusion.measurements.base import Noise, Operator, kind_of
from util.errors import UserError
from util.seeding import ImageRandomness


@dataclass(frozen=True)
class Measurement:
    """Operator, noise model and y bound together: all that a method may know of the task.

    The class methods prepare a copy of the operator that they are given, so no measurement changes another.
    """

    operator: Operator                              # prepared
    noiser: Noise
    y: Tensor                                       # (B, ...)

    @classmethod
    def simulate(cls, operator: Operator, noiser: Noise, x: Tensor, randomness: ImageRandomness) -> "Measurement":
        """Measure clean images `x` (B, C, H, W) in [-1, 1]: draw the operator, apply it, add noise."""
        operator = operator.prepare(tuple(x.shape), randomness.for_purpose("operator"))
        with torch.no_grad():
            return cls(operator, noiser, operator.keep(noiser(operator(x), randomness.for_purpose("noise"))))

    @classmethod
    def from_data(cls, operator: Operator, noiser: Noise, y: Tensor, image_shape: tuple[int, int, int, int],
                  randomness: ImageRandomness) -> "Measurement":
        """Measurements y (B, ...) that were made elsewhere, of images (B, C, H, W) that nobody knows.

        Entries that do not depend on the image, such as the missing pixels of an inpainting task, may hold anything;
        they become what the operator gives there. Grey and colour are exchanged where the operator needs it: a single
        channel is repeated, three become their mean.

        Raises:
            UserError: the operator cannot serve such images, or gives measurements of another shape.
        """
        operator = operator.prepare(image_shape, randomness.for_purpose("operator"))
        with torch.no_grad():
            nothing = operator(y.new_zeros(image_shape))
            if y.dim() == 3 and nothing.dim() == 4:
                y = y[:, None]                                          # grey: (B, H, W) -> (B, 1, H, W)
            if y.dim() >= 4 and y.shape[2:] == nothing.shape[2:]:
                if y.shape[1] == 3 and nothing.shape[1] == 1:
                    y = y.mean(dim=1, keepdim=True)
                elif y.shape[1] == 1:
                    y = y.expand_as(nothing)
            _check_same_shape(operator, y, nothing)
            return cls(operator, noiser, torch.where(operator.informative(y) > 0, y, nothing))

    @classmethod
    def stored(cls, operator: Operator, noiser: Noise, y: Tensor, image_shape: tuple[int, int, int, int],
               drawn: dict[str, Tensor], randomness: ImageRandomness) -> "Measurement":
        """Measurements y (B, ...) as they were saved, with what the operator had drawn for them; nothing is changed.

        Raises:
            UserError: y, image_shape, drawn and the operator do not belong together.
        """
        operator = operator.prepare(image_shape, randomness.for_purpose("operator"))
        operator.restore_drawn(drawn)
        with torch.no_grad():
            _check_same_shape(operator, y, operator(y.new_zeros(image_shape)))
        return cls(operator, noiser, y)

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the images that this measurement is of."""
        return self.operator.image_shape

    def distance(self, x0: Tensor) -> Tensor:
        """The data misfit of images `x0` (B, C, H, W) -> (B,); UserError where the noise model gives something else."""
        distance = self.noiser.distance(self.y, self.operator(x0))
        if not isinstance(distance, Tensor) or distance.shape != self.y.shape[:1]:
            raise UserError(f"noise '{self.noiser.name}': distance gives {kind_of(distance)}, expected one number per "
                            f"image, [{len(self.y)}]")
        return distance

    def chi_square(self, x0: Tensor) -> Tensor:
        """||y - A(x0)||^2 over what the noise makes of it if x0 is the truth, m sigma^2 for Gaussian noise on the m
        informative entries: (B, C, H, W) -> (B,).

        About 1 for an image that agrees with its measurement as well as the truth does; NaN without noise.
        """
        prediction = self.operator(x0)
        expected = self.noiser.expected_square(prediction)
        if expected is None:
            return torch.full((len(x0),), float("nan"), device=x0.device)
        informative = self.operator.informative(self.y)
        found = informative * (self.y - prediction) ** 2
        return found.flatten(1).sum(1) / (informative * expected).flatten(1).sum(1)

    def finish(self, x: Tensor) -> Tensor:
        """Restored images (B, C, H, W) as they are given out: as they are, unless the operator says otherwise."""
        return self.operator.finish(x, self.y)

    def initial_guess(self) -> Tensor:
        """The measurement in image space, (B, C, H, W): where DPPS starts."""
        return self.operator.initial_guess(self.y)

    def lift(self) -> Tensor:
        """The measurement in image space, (B, C, H, W): what is shown and scored as the degraded input."""
        return self.operator.lift(self.y)


def _check_same_shape(operator: Operator, y: Tensor, prediction: Tensor) -> None:
    if y.shape != prediction.shape:
        found, expected, images = ("x".join(map(str, s[1:])) for s in (y.shape, prediction.shape, operator.image_shape))
        raise UserError(f"the measurement is {found}, but operator '{operator.name}' gives {expected} for images of "
                        f"{images}; give the measurement of such images, or change measurement.operator")
