"""Operators in sequence."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guided_diffusion.measurements.base import OPERATORS, LinearOperator, Operator, register_operator
from util.config.registry import fits
from util.errors import UserError
from util.seeding import ImageRandomness


class Chain(Operator):
    """A = A_k ... A_2 A_1, the first operator first: (B, C, H, W) in [-1, 1] -> whatever the last one gives.

    Shapes, value ranges and border rules are those of the parts; each takes what the one before it gives.
    """

    name = "composite"

    def __init__(self, operators: Sequence[Operator]):
        super().__init__()
        self.operators = nn.ModuleList(operators)
        self.register_buffer("origin", torch.empty(0), persistent=False)           # knows the device
        self.pictures = operators[-1].pictures

    def image_size_of(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        """The sizes in turn, the last operator's first; None where one does not tell."""
        size = self.operators[-1].image_size_of(shape)
        for operator in reversed(self.operators[:-1]):
            size = size and operator.image_size_of((3, *size))
        return size

    def draw(self, shape: tuple[int, int, int, int], randomness: ImageRandomness) -> None:
        """Prepare the operators in turn, each for the shape that the one before it gives.

        Raises:
            UserError: an operator cannot serve what it is given; the message names it.
        """
        x, prepared = self.origin.new_zeros(shape), []
        for i, operator in enumerate(self.operators):
            if x.dim() != 4:
                raise UserError(f"composite: operators[{i}] '{operator.name}' takes images, but what comes before it "
                                f"gives measurements of shape {list(x.shape[1:])}; put that operator last")
            try:
                prepared.append(operator.prepare(tuple(x.shape), randomness))
            except UserError as error:
                raise UserError(f"composite: operators[{i}]: {error}") from None
            with torch.no_grad():
                x = prepared[-1](x)
        self.operators = nn.ModuleList(prepared)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, ...)."""
        for operator in self.operators:
            x = operator(x)
        return x

    def forward_many(self, x: Tensor) -> Tensor:
        """(n, B, C, H, W) -> (n, B, ...)."""
        for operator in self.operators:
            x = operator.forward_many(x)
        return x

    def initial_guess(self, y: Tensor) -> Tensor:
        """The guesses of the operators, the last one's first: (B, ...) -> (B, C, H, W)."""
        for operator in reversed(self.operators):
            y = operator.initial_guess(y)
        return y

    def lift(self, y: Tensor) -> Tensor:
        """As the operators show it, the last one's first: (B, ...) -> (B, C, H, W)."""
        for operator in reversed(self.operators):
            y = operator.lift(y)
        return y

    def informative(self, y: Tensor) -> Tensor:
        """What the last operator says, in the shape of y."""
        return self.operators[-1].informative(y)

    def keep(self, y: Tensor) -> Tensor:
        """What the last operator keeps, in the shape of y."""
        return self.operators[-1].keep(y)


class LinearChain(Chain, LinearOperator):
    """A chain of linear operators: A^T = A_1^T ... A_k^T, and A^+ by conjugate gradients, as (AB)^+ is not B^+ A^+."""

    def transpose(self, y: Tensor) -> Tensor:
        """A^T y: (B, ...) -> (B, C, H, W)."""
        for operator in reversed(self.operators):
            y = operator.transpose(y)
        return y


@register_operator("composite")
class CompositeOperator(Operator):
    """Two or more registered operators in sequence: makes a `Chain`, or a `LinearChain` if all of them are linear.

    Args:
        operators: for each its `name` and parameters, as under measurement.operator; applied in this order.

    Raises:
        UserError: no list of two or more mappings, or an operator that cannot be built; the message names it.
    """

    def __new__(cls, operators: Sequence[dict]) -> Chain:
        if not fits(operators, Sequence[dict]) or len(operators) < 2:
            raise UserError(f"composite: operators is {operators!r:.80}, expected a list of two or more, each with its "
                            "name and parameters, such as [{name: hdr}, {name: jpeg, quality: 50}]")
        built = [cls.build(i, params) for i, params in enumerate(operators)]
        return (LinearChain if all(isinstance(operator, LinearOperator) for operator in built) else Chain)(built)

    @staticmethod
    def build(i: int, params: dict) -> Operator:
        """The i-th operator, from its mapping of name and parameters."""
        try:
            if "name" not in params:
                raise UserError(f"'name' is missing; found {', '.join(map(str, params)) or 'nothing'}")
            if params.get("keep_known"):
                raise UserError("keep_known is for an operator alone, whose known pixels are those of the image")
            return OPERATORS.build(params["name"], **{key: value for key, value in params.items() if key != "name"})
        except UserError as error:
            raise UserError(f"composite: operators[{i}]: {error}") from None
