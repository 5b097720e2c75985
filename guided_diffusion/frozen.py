"""Operations of a frozen network that keep less for the gradient of its input: memory only, never other numbers."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 2 ** 18                                     # numbers that stay in the processor's cache between operations


class NormalisedSiLU(torch.autograd.Function):
    """y = silu(z), z = scale x_hat + shift, x_hat = (x - mean) rstd in every group of channels; (B, C, H, W) in
    channels_last on a CPU, scale and shift (B, C) -> y (B, C, H, W), x_hat, rstd (B, groups).

    dL/dx = rstd (scale g - mean(scale g) - x_hat mean(scale g x_hat)), g = silu'(z) dL/dy, means over the group. For it
    x_hat alone is kept, and z is computed again; one by one, the operations keep x_hat and z.
    """

    @staticmethod
    def forward(x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels, height, width = x.shape
        exact = torch.promote_types(x.dtype, torch.float32)                         # of mean and rstd
        one, zero = torch.ones(channels, dtype=exact), torch.zeros(channels, dtype=exact)
        x_hat, _, rstd = torch.native_group_norm(x, one, zero, batch, channels, height * width, groups, eps)
        y = torch.empty_like(x_hat)
        scale, shift = (values.to(x)[:, None] for values in (scale, shift))
        for x_hat_piece, y_piece in _pieces(x_hat, y):
            F.silu(torch.addcmul(shift, x_hat_piece, scale, out=y_piece), inplace=True)
        return y, x_hat, rstd

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, scale, shift, *_ = inputs
        _, x_hat, rstd = output
        ctx.mark_non_differentiable(x_hat, rstd)
        ctx.save_for_backward(x_hat, rstd, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x_hat, rstd, scale, shift = ctx.saved_tensors
        (batch, groups), channels = rstd.shape, scale.shape[1]
        dx = torch.empty_like(x_hat)                                                # g, to begin with
        pieces = _pieces(x_hat, dx, dy.contiguous(memory_format=torch.channels_last))
        scales, shifts = (values.to(dx)[:, None] for values in (scale, shift))      # (B, 1, C)
        sums = rstd.new_zeros(2, batch, channels)                                   # of g and g x_hat
        for x_hat_piece, g, dy_piece in pieces:
            z = torch.addcmul(shifts, x_hat_piece, scales)
            torch.ops.aten.silu_backward.grad_input(dy_piece, z, grad_input=g)
            sums[0] += g.sum(1, dtype=rstd.dtype)
            sums[1] += torch.mul(g, x_hat_piece, out=z).sum(1, dtype=rstd.dtype)
        means = (scale * sums).view(2, batch, groups, -1).sum(3) * (rstd.numel() / x_hat.numel())
        factors = torch.cat([rstd[None], -rstd * means]).repeat_interleave(channels // groups, dim=2)
        factors[0] *= scale
        factor, offset, slope = factors.to(dx)[:, :, None]                          # (B, 1, C)
        for x_hat_piece, g, _ in pieces:
            torch.addcmul(offset, g, factor, out=g).addcmul_(x_hat_piece, slope)
        return dx, sums[1], sums[0], None, None


def _pieces(*images: Tensor) -> list[tuple[Tensor, ...]]:
    """Images (B, C, H, W) in channels_last, piece by piece of their pixels: views (B, pixels, C)."""
    batch, channels, height, width = images[0].shape
    pixels = max(1, PIECE // (batch * channels))
    return list(zip(*(image.permute(0, 2, 3, 1).view(batch, height * width, channels).split(pixels, dim=1)
                      for image in images), strict=True))


class FrozenConvolution(torch.autograd.Function):
    """Convolution whose parameters take no gradient: unlike torch's own, it does not keep its input for theirs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        x, weight, _, *options = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)
        ctx.layout, ctx.options = (x.shape, x.stride()), options

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, = ctx.saved_tensors
        x = dy.new_empty_strided(*ctx.layout)                                       # nobody reads its values
        dx, _, _ = torch.ops.aten.convolution_backward(dy, x, weight.to(dy.dtype), None, *ctx.options, (1, 1), False,
                                                       (0, 0), 1, (True, False, False))
        return dx, None, None, None, None

    @staticmethod
    def jvp(ctx, dx: Tensor, *_: None) -> Tensor:
        weight, = ctx.saved_tensors
        return F.conv2d(dx, weight.to(dx.dtype), None, *ctx.options)


class Halve(torch.autograd.Function):
    """Means of 2 x 2 pixels, (B, C, H, W) -> (B, C, H/2, W/2); torch's own keeps the image for its gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return F.interpolate(dy / 4, scale_factor=2, mode="nearest")

    @staticmethod
    def jvp(ctx, dx: Tensor) -> Tensor:
        return F.avg_pool2d(dx, 2)


def halve(x: Tensor) -> Tensor:
    """`Halve`, which compilers do not take."""
    return F.avg_pool2d(x, 2) if torch.compiler.is_compiling() else Halve.apply(x)
