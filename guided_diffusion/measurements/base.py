"""What a forward model, a noise model and a measurement are."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from guided_diffusion.measurements.conjugate_gradients import column, damped_inverse, dot, largest_eigenvalue
from guided_diffusion.measurements.svd import SVD
from util.config.registry import Registry
from util.errors import UserError
from util.seeding import ImageRandomness

NEGLIGIBLE_DAMPING = {torch.float32: (1e-3, 50), torch.float64: (1e-8, 1000)}   # rcond, and iterations allowed for it
FALLBACK_RCOND = 1e-2
MOST_ITERATIONS = {torch.float32: 500, torch.float64: 3000}                     # enough for that


class Operator(nn.Module, ABC):
    """A forward model A: images (B, C, H, W) in [-1, 1] -> measurements (B, ...).

    `prepare` comes before anything else: it gives a copy for a batch of images, with their shape and whatever is random
    drawn, one per image. That copy is what a `Measurement` keeps; the operator that it was made from stays as it is.
    A subclass writes `forward`, and `draw` where it refuses shapes or draws something. Fixed parameters are buffers, so
    `.to(device)` moves them.

    Measurements are real and may have any shape of two axes or more, the batch first; complex ones are given as pairs,
    `torch.view_as_real`. Where they are no images, `initial_guess` and `lift` find images to begin with and to show.
    """

    name = "unnamed"                                # the registry sets it
    pictures = True                                 # measurements may be images in [-1, 1], which a PNG can hold
    image_shape: tuple[int, int, int, int] | None = None        # (B, C, H, W), once prepared

    def __init__(self):
        super().__init__()
        self.drawn_names: list[str] = []
        self.files: dict[str, Path] = {}            # as the configuration names them -> where they are: kernel, mask

    def files_read(self) -> dict[str, Path]:
        """All files that A depends on, those of an operator's parts included."""
        return {name: path for part in self.modules() if isinstance(part, Operator)
                for name, path in part.files.items()}

    def register_drawn(self, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Make the attribute `name` a buffer for what `draw` assigns, one per image: a tensor (B, ...), empty before.

        What is declared so is saved and loaded with the measurements; see `drawn`.
        """
        self.register_buffer(name, torch.empty(0, dtype=dtype), persistent=False)
        self.drawn_names.append(name)

    def drawn(self) -> dict[str, Tensor]:
        """Name -> what was drawn, (B, ...) each: masks, kernels; of an operator's parts under "path.to.part.name"."""
        return {f"{path}.{name}".lstrip("."): getattr(part, name) for path, part in self.named_modules()
                if isinstance(part, Operator) for name in part.drawn_names}

    def restore_drawn(self, values: dict[str, Tensor]) -> None:
        """Take `values`, as `drawn` gives them, in place of what was drawn.

        Raises:
            UserError: one is missing, has another shape than what was drawn, or values that nothing draws.
        """
        for name, tensor in self.drawn().items():
            found = f"shape {list(values[name].shape[1:])}" if name in values else "none"
            if name not in values or values[name].shape != tensor.shape:
                raise UserError(f"operator '{self.name}' needs {name} of shape {list(tensor.shape[1:])}, found {found}")
            path, _, leaf = name.rpartition(".")
            part = self.get_submodule(path)
            expected = part.refuse_drawn(leaf, values[name])
            if expected is not None:
                low, high = (value.item() for value in values[name].aminmax())
                raise UserError(f"operator '{self.name}': {name} has values from {low:g} to {high:g}, expected "
                                f"{expected}; was it made by another program?")
            setattr(part, leaf, values[name].to(tensor))

    def refuse_drawn(self, name: str, values: Tensor) -> str | None:
        """What should be in place of the `values` (B, ...) of the drawn `name`, in words; None if they may be there.

        Unless overridden, finite numbers may.
        """
        return None if values.isfinite().all() else "finite numbers"

    def image_size_of(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """(H, W) of the images whose measurements have `shape`, two axes or more; None where that does not tell.

        Unless overridden, measurements that may be pictures have the size of the image: (C, H, W) -> (H, W).

        Raises:
            UserError: no image has measurements of this shape.
        """
        return tuple(shape[1:]) if self.pictures and len(shape) == 3 else None

    def prepare(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> "Operator":
        """A copy for a batch of images of `shape` (B, C, H, W), with masks or kernels drawn from `randomness`.

        Buffers, weights and modules are shared with this operator until `draw` assigns others, so a copy costs no
        memory; move or cast an operator (`.to`) before it is prepared.

        Raises:
            UserError: the operator cannot serve images of this shape.
        """
        assert len(shape) == 4 and shape[0] == len(randomness), (shape, len(randomness))
        prepared = copy(self)
        prepared.__dict__ |= {name: copy(vars(self)[name]) for name in ("_parameters", "_buffers", "_modules")}
        prepared.image_shape = tuple(shape)
        prepared.draw(prepared.image_shape, randomness)
        return prepared

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Hook of `prepare`, called on the copy: assign what is random, one per image, and what depends on `shape`.

        Assign new values to attributes; what is changed in place is changed in all copies. An operator that holds
        others replaces each by a prepared copy of it.

        Raises:
            UserError: the operator cannot serve images of `shape` (B, C, H, W).
        """

    def __getattr__(self, name: str):
        """What `nn.Module` finds; UserError where its `__init__` never ran."""
        if "_modules" not in vars(self):
            raise UserError(f"operator '{self.name}' lacks '{name}'; its __init__ has to begin with super().__init__()")
        return super().__getattr__(name)

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), see `forward`.

        Raises:
            UserError: nobody has prepared the operator, it changes x, or it does not give a real (B, ...) of the dtype
                of x.
        """
        if self.image_shape is None:
            raise UserError(f"operator '{self.name}' is not prepared; use what its prepare(shape, randomness) returns")
        y = unchanged(super().__call__, x, f"operator '{self.name}'")
        if not isinstance(y, Tensor) or y.dtype != x.dtype or y.dim() < 2 or len(y) != len(x):
            remedy = f"return a tensor ({len(x)}, ...) of two axes or more and of dtype {x.dtype}"
            if isinstance(y, Tensor) and y.is_complex():
                remedy = "return torch.view_as_real(y), pairs of real numbers"
            raise UserError(f"operator '{self.name}' gives {kind_of(y)} as measurements; {remedy}")
        return y

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A(x): (B, C, H, W) -> (B, ...)."""

    def forward_many(self, x: Tensor) -> Tensor:
        """A of several candidates per image, (n, B, C, H, W) -> (n, B, ...); override where one call can do it."""
        return torch.stack([self(candidate) for candidate in x])

    def initial_guess(self, y: Tensor) -> Tensor:
        """The measurement in image space, (B, C, H, W), as DPPS's aligned initialisation starts from it.

        Unless overridden, y itself if it has the shape of the images, and mid-grey images, which say nothing, if not.
        """
        return y if y.shape == self.image_shape else y.new_zeros(self.image_shape)

    def lift(self, y: Tensor) -> Tensor:
        """The measurement in image space, (B, C, H, W), as it is shown and as the input metrics score it."""
        return self.initial_guess(y)

    def informative(self, y: Tensor) -> Tensor:
        """1 where an entry of y depends on the image, 0 where it is noise alone; in the shape of `y`."""
        return torch.ones_like(y)

    def ambiguities(self, x: Tensor) -> list[Tensor]:
        """The images (B, C, H, W) that no measurement can tell from `x`, itself first: trivial symmetries of A."""
        return [x]

    def keep(self, y: Tensor) -> Tensor:
        """What is kept of a noisy measurement: all of it, unless the operator says otherwise."""
        return y

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """What is kept of restored images `x` (B, C, H, W): all of them, unless the operator knows something from y."""
        return x


class LinearOperator(Operator):
    """A linear forward model. All else is derived from `forward`; override `transpose` and `pinv` by closed forms."""

    has_svd = False                                 # whether there is a closed form of it

    def transpose(self, y: Tensor) -> Tensor:
        """The adjoint A^T y, (B, ...) -> (B, C, H, W), by the vector-Jacobian product of `forward`."""
        zeros = torch.zeros(self.image_shape, dtype=y.dtype, device=y.device)
        with torch.enable_grad():
            return torch.func.vjp(self, zeros)[1](y)[0]

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse A^+ y, (B, ...) -> (B, C, H, W), by conjugate gradients, see `damped_pinv`.

        The damping is negligible (rcond 1e-8 in float64, 1e-3 in float32) for images that converge like this within
        1000 or 50 iterations; the others, whose A is too ill-conditioned for that, are solved with rcond = 1e-2. So the
        Penrose identities hold to 1e-10 in float64 for gains of 1e-3 and above, and for other operators to 1e-2 only.
        """
        gain, (rcond, iterations) = self._largest_gain(y), NEGLIGIBLE_DAMPING[y.dtype]
        x, converged = damped_inverse(self, self.transpose, y, rcond * gain, iterations)
        if converged.all():
            return x
        damped, _ = damped_inverse(self, self.transpose, y, FALLBACK_RCOND * gain, MOST_ITERATIONS[y.dtype])
        return torch.where(column(converged, x), x, damped)

    def damped_pinv(self, y: Tensor, rcond: float) -> Tensor:
        """The solution of the damped normal equations, (B, ...) -> (B, C, H, W), by conjugate gradients:

            (A^T A + d^2 I) x = A^T y,   d = rcond times the largest gain of A,

        which scale what A attenuates to a gain s by s / (s^2 + d^2) instead of 1 / s: x is at most ||y|| / (2 d), and
        A A^+ A = A holds to (d / s)^2 where s > d.
        """
        return damped_inverse(self, self.transpose, y, rcond * self._largest_gain(y), MOST_ITERATIONS[y.dtype])[0]

    def _largest_gain(self, y: Tensor) -> Tensor:
        """The largest singular value of A for each image, (B,), from below."""
        return largest_eigenvalue(lambda v: self.transpose(self(v)), self.image_shape, y).sqrt()

    def initial_guess(self, y: Tensor) -> Tensor:
        """y itself if it has the shape of the images, otherwise the adjoint at the scale that explains y best:

            x = a A^T y,   a = <A A^T y, y> / ||A A^T y||^2  of each image,

        which is A^+ y where A A^T is a multiple of the identity. (B, ...) -> (B, C, H, W).
        """
        if y.shape == self.image_shape:
            return y
        adjoint = self.transpose(y)
        explained = self(adjoint)
        scale = dot(explained, y) / dot(explained, explained).clamp_min(torch.finfo(y.dtype).tiny)
        return column(scale, adjoint) * adjoint

    def project(self, x: Tensor, y: Tensor) -> Tensor:
        """The closest image to `x` (B, C, H, W) that has the measurement `y`: x - A^+(A x - y)."""
        return x - self.pinv(self(x) - y)

    def svd(self) -> SVD:
        """A = U S V^T of the prepared operator, exact, in float64; UserError unless `has_svd`."""
        raise UserError(f"operator '{self.name}' has no singular value decomposition in closed form")


class Noise(ABC):
    """A noise model: how measurements are corrupted, and how far a prediction is from one.

    Attributes:
        white_sigma: sigma of a noise that is N(0, sigma^2 I) whatever is measured, 0 without noise; else None.
        of_pictures: whether it takes what is measured for intensities on [-1, 1].
    """

    name: str                                       # set by the registry
    white_sigma: float | None = None
    of_pictures = False

    def check(self, operator: Operator) -> None:
        """Raise UserError if this is no noise for what `operator` measures."""
        if self.of_pictures and not operator.pictures:
            raise UserError(f"noise '{self.name}' is that of pictures on [-1, 1], and operator '{operator.name}' "
                            "measures something else; use gaussian or clean")

    @abstractmethod
    def forward(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """Corrupt the clean measurement `y` (B, ...); image b uses stream b."""

    def __call__(self, y: Tensor, randomness: ImageRandomness) -> Tensor:
        """The noisy y, see `forward`; UserError if that changes y, or gives no tensor of its shape and dtype."""
        noisy = unchanged(lambda y: self.forward(y, randomness), y, f"noise '{self.name}'")
        if not isinstance(noisy, Tensor) or noisy.shape != y.shape or noisy.dtype != y.dtype:
            raise UserError(f"noise '{self.name}' makes {kind_of(noisy)} of {kind_of(y)}; return what is like y")
        return noisy

    def distance(self, y: Tensor, prediction: Tensor) -> Tensor:
        """The data misfit of each image, (B, ...) and (B, ...) -> (B,): the Euclidean norm unless overridden."""
        return torch.linalg.vector_norm((y - prediction).flatten(1), dim=1)

    def variance(self, prediction: Tensor) -> Tensor | None:
        """The noise variance of each entry of y given the clean `prediction`; None where there is no noise."""
        return None

    def expected_square(self, prediction: Tensor) -> Tensor | None:
        """E (y - prediction)^2 of each entry, (B, ...) -> the same, if `prediction` is the clean one: the variance
        unless overridden; None where there is no noise."""
        return self.variance(prediction)

    @property
    def has_variance(self) -> bool:
        """Whether `variance` gives one."""
        return self.variance(torch.zeros(1, 1)) is not None


OPERATORS = Registry("operator", Operator)
NOISES = Registry("noise", Noise)
register_operator = OPERATORS.register
register_noise = NOISES.register


def kind_of(value: object) -> str:
    """Words for what somebody's code has returned: "a tensor of shape [2, 3] and dtype torch.float64", "a tuple"."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and dtype {value.dtype}"
    return "None" if value is None else f"a {type(value).__name__}"


def unchanged(function: Callable[[Tensor], Tensor], x: Tensor, owner: str) -> Tensor:
    """function(x); UserError if that changes x in place."""
    counts = not x.is_inference()
    version = x._version if counts else 0
    y = function(x)
    if counts and x._version != version:
        raise UserError(f"{owner} changes its input in place; let its forward begin with a clone of it")
    return y


def get_operator(name: str, device: torch.device | str = "cpu", **params) -> Operator:
    """Build a registered operator on `device`; UserError on an unknown name or parameter."""
    return OPERATORS.build(name, **params).to(device)


def get_noise(name: str, **params) -> Noise:
    """Build a registered noise model; UserError on an unknown name or parameter."""
    return NOISES.build(name, **params)
