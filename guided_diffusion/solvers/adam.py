"""Adam: Kingma & Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015."""

from torch import Tensor

EPS = 1e-8


class Adam:
    """The moves of Algorithm 1 for gradients of whatever shape, every number by itself.

    Args:
        lr: the length of a move while gradients keep their sign.
        beta1, beta2: how much of the moments is kept.
    """

    def __init__(self, lr: float, beta1: float = 0.9, beta2: float = 0.999):
        self.lr, self.beta1, self.beta2 = lr, beta1, beta2
        self.mean, self.square, self.steps = 0, 0, 0

    def move(self, gradient: Tensor) -> Tensor:
        """What is added to the variable, in the shape of its gradient."""
        self.steps += 1
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * gradient
        self.square = self.beta2 * self.square + (1 - self.beta2) * gradient ** 2
        mean, square = self.mean / (1 - self.beta1 ** self.steps), self.square / (1 - self.beta2 ** self.steps)
        return -self.lr * mean / (square.sqrt() + EPS)
