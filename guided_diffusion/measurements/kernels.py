"""Blur kernels: Gaussian, and the random motion kernels of DPS's tasks, written from their published statistics."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter1d


def gaussian_kernel(size: int, sigma: float) -> np.ndarray:
    """A (size, size) Gaussian of standard deviation `sigma` pixels with sum one, float64, peak at index size // 2.

    The product of two one-dimensional Gaussians truncated at radius int(4 sigma + 1/2). Where the window is smaller
    than that radius, the tails are mirrored back at its border (edge repeated), as DPS's kernel is.
    """
    impulse = np.zeros(size)
    impulse[size // 2] = 1.0
    profile = gaussian_filter1d(impulse, sigma, mode="reflect", truncate=4.0)
    profile /= profile.sum()
    return np.outer(profile, profile)


def reflected_filter_matrix(profile: np.ndarray, n: int) -> np.ndarray:
    """The matrix (n, n) that correlates n samples, extended by reflection without repeating the edge, with `profile`.

    `profile` has an odd length 2 r + 1 with r < n.
    """
    radius = len(profile) // 2
    source = np.arange(n)[:, None] + np.arange(-radius, radius + 1)                        # (n, taps)
    source = np.abs(source)
    source = np.minimum(source, 2 * (n - 1) - source)
    matrix = np.zeros((n, n))
    np.add.at(matrix, (np.arange(n)[:, None], source), profile)
    return matrix


def motion_kernel(size: int, intensity: float, rng: np.random.Generator) -> np.ndarray:
    """A random camera-shake kernel (size, size), float64, non-negative, sum one.

    Args:
        size: side of the kernel in pixels.
        intensity: 0 (a straight stroke) to 1 (a long, shaky one).
        rng: where its path is drawn from.
    """
    return rasterise(motion_path(size, intensity, rng), size)


def motion_path(size: int, intensity: float, rng: np.random.Generator) -> np.ndarray:
    """The vertices (n, 2) of a random path as (x, y) in a square of side 2 size; n >= 2.

    With D the square's diagonal and q the intensity, the path is sought to be 0.75 D (U(0, 1) + U(0, q^2)) long; each
    step is D (1.1 - q) Beta(1, 30), conditioned on being no longer than the whole.
    """
    diagonal = math.sqrt(2) * 2 * size
    longest = 0.75 * diagonal * ((1 - rng.random()) + rng.uniform(0, intensity ** 2))
    steps = _step_lengths(longest, diagonal * (1.1 - intensity), rng)
    angles = _step_angles(len(steps), intensity, rng)
    path = np.cumsum(steps * np.exp(1j * angles))
    path = (path - path.mean()) * np.exp(1j * rng.uniform(0, np.pi))
    return np.stack((path.real, path.imag), axis=1) + size


def _step_lengths(longest: float, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Lengths scale b until their sum reaches `longest`, b ~ Beta(1, 30) given scale b <= longest.

    The distribution function of Beta(1, 30) is F(b) = 1 - (1 - b)^30, so b = 1 - (1 - F)^(1/30) with F uniform on
    [0, F(longest / scale)).
    """
    top = -math.expm1(30 * math.log1p(-min(longest / scale, 1 - 1e-12)))
    steps = []
    while sum(steps) < longest:
        steps.append(-scale * math.expm1(math.log1p(-top * rng.random()) / 30))
    return np.array(steps)


def _step_angles(n: int, intensity: float, rng: np.random.Generator) -> np.ndarray:
    """Absolute directions (n,) of the steps, in radians.

    The first is uniform within +-m, m = U(0, pi q); the others are triangular on [0, m + 0.1] with mode q m, on the
    side of the one before unless flipped, with probability Beta(2, 20).
    """
    largest = rng.uniform(0, np.pi * intensity)
    jitter = rng.beta(2, 20)
    first = rng.uniform(-largest, largest)
    sizes = rng.triangular(0, intensity * largest, largest + 0.1, n - 1)
    flips = np.where(rng.random(n - 1) < jitter, -1, 1)
    return np.concatenate(([first], np.sign(first) * np.cumprod(flips) * sizes))


def rasterise(path: np.ndarray, size: int) -> np.ndarray:
    """Draw a path (n, 2) of (x, y) in a square of side 2 size as a kernel (size, size), float64 with sum one.

    An 8-bit line of width D/150 (at least one pixel, D the square's diagonal), a Gaussian blur of radius 0.01 D, both
    rounded down, and a Lanczos reduction to half the side.
    """
    side = 2 * size
    diagonal = math.sqrt(2) * side
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).line([tuple(vertex) for vertex in path], fill=255, width=max(1, int(diagonal / 150)))
    canvas = canvas.filter(ImageFilter.GaussianBlur(int(0.01 * diagonal)))
    grey = np.asarray(canvas.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float64)
    return grey / grey.sum()
