"""Random numbers belong to (seed, image, sample, purpose) and to nothing else."""

import numpy as np
import pytest
import torch

from util.seeding import ImageRandomness

X = torch.zeros(3, 3, 8, 8)
RECORDED = [0.9768930928573418, 0.34205874844843537, 1.4059442422719304]
RECORDED_NUMPY = 0.9966836214775487


def draw(names=("a", "b", "c"), samples=None, seed=0, purpose="sampling", x=X):
    return ImageRandomness(seed, names, samples, purpose).randn_like(x)


def test_streams_go_by_name_and_not_by_place_or_batch():
    together = draw()
    assert torch.equal(draw(("c", "a", "b")), together[[2, 0, 1]])
    assert torch.equal(draw(("b",), x=X[:1])[0], together[1])


def test_equal_keys_give_equal_numbers_and_different_keys_different_ones():
    a = draw(("a",), x=X[:1])
    assert torch.equal(a, draw(("a",), x=X[:1]))
    others = [draw(("b",), x=X[:1]), draw(("a",), seed=1, x=X[:1]), draw(("a",), samples=[1], x=X[:1]),
              draw(("a",), purpose="noise", x=X[:1]), draw(("a",), seed=-1, x=X[:1])]
    for i, first in enumerate([a, *others]):
        for second in [a, *others][i + 1:]:
            assert abs(float((first * second).mean())) < 0.3
            assert not torch.equal(first, second)


@pytest.mark.parametrize("purpose", ["operator", "noise"])
def test_samples_of_an_image_share_their_measurement(purpose):
    randomness = ImageRandomness(0, ["a", "a"], [0, 1])
    first, second = randomness.for_purpose(purpose).randn_like(X[:2])
    assert torch.equal(first, second)
    first, second = randomness.for_purpose("sampling").randn_like(X[:2])
    assert not torch.equal(first, second)
    one, two = randomness.for_purpose(purpose).numpy_generators
    assert one.random() == two.random()


def test_streams_run_on_and_numbers_are_standard():
    randomness = ImageRandomness(0, ["a"])
    x = torch.zeros(1, 1, 200, 200)
    first, second = randomness.randn_like(x), randomness.randn_like(x)
    assert not torch.equal(first, second)
    assert abs(float(first.mean())) < 0.02
    assert abs(float(first.std()) - 1) < 0.02
    uniform = randomness.rand_like(x)
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.01


def test_numbers_are_the_same_on_every_machine():
    # recorded once; a change would silently change every restoration
    torch.testing.assert_close(
        ImageRandomness(0, ["a"]).randn_like(torch.zeros(1, 3, dtype=torch.float64)),
        torch.tensor([RECORDED], dtype=torch.float64), rtol=0, atol=1e-12)
    assert np.isclose(ImageRandomness(0, ["a"], purpose="operator").numpy_generators[0].random(), RECORDED_NUMPY)


def test_dtype_follows_the_image():
    assert ImageRandomness(0, ["a"]).randn_like(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64
