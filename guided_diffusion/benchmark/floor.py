"""The floor below which no step gets: the network's operations at the speed of a matrix product."""

import copy
import time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}    # of the network, else float32
TRIES = 10


def count_flops(model: nn.Module, size: int) -> int:
    """Floating-point operations of the network for one image, forward and gradient with respect to the image.

    Counted on the meta device, where nothing is computed; a multiplication and an addition are two.
    """
    twin = copy.deepcopy(model).to("meta").requires_grad_(False)
    twin.autocast_dtype = None
    x = torch.empty(1, 3, size, size, device="meta", requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        twin(x * 1, torch.zeros(1, device="meta")).sum().backward()
    return counter.get_total_flops()


def matmul_peak(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a square matrix product, the fastest of ten, on all threads."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device, dtype=DTYPES.get(precision, torch.float32))
    before, seconds = torch.backends.cuda.matmul.allow_tf32, []
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    for _ in range(TRIES + 2):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    torch.backends.cuda.matmul.allow_tf32 = before
    return 2 * side ** 3 / min(seconds[2:])
