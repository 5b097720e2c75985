"""Classical baselines: better than the measurement at what each is made for, any batch, refusals, the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from skimage.metrics import peak_signal_noise_ratio

import sample_condition
from data.dataloader import get_dataset
from guided_diffusion.condition_methods import CONDITIONING_METHODS, get_conditioning_method
from guided_diffusion.measurements import LinearOperator, Measurement, Operator, get_noise, get_operator
from guided_diffusion.measurements.blur import Blur
from guided_diffusion.measurements.inpainting import InpaintingOperator
from guided_diffusion.solvers import ClassicalRestorer, Wiener
from guided_diffusion.solvers.base import to_arrays
from tests.helpers import OPERATOR_EXAMPLES
from util.errors import UserError
from util.img_utils import to_unit
from util.seeding import ImageRandomness

METHODS = [name for name in CONDITIONING_METHODS if issubclass(CONDITIONING_METHODS[name], ClassicalRestorer)]
TASKS = {
    "denoising": ("noise", {}),
    "sr": ("super_resolution", {"scale_factor": 4}),
    "gauss": ("gaussian_blur", {"kernel_size": 21, "intensity": 2.0}),
    "motion": ("motion_blur", {"kernel_size": 21, "intensity": 0.5}),
    "box": ("inpainting", {"mask_opt": {"mask_type": "box", "mask_len_range": [20, 20], "margin": [8, 8]}}),
    "random": ("inpainting", {"mask_opt": {"mask_type": "random", "mask_prob_range": [0.7, 0.7]}}),
}
SIGMA = {task: 0.2 if task == "sr" else 0.05 for task in TASKS}     # reduction leaves little noise to be seen
MADE_FOR = [                                        # task, method, parameters, least gain in dB over the lifted y
    ("denoising", "total_variation", {"weight": 0.01}, 1.5),
    ("denoising", "non_local_means", {"h": 0.02, "sigma": 0.02}, 1.5),
    ("sr", "total_variation", {"weight": 0.1}, 0.3),
    ("sr", "non_local_means", {"h": 0.05, "sigma": 0.05}, 0.3),
    ("sr", "total_variation", {"weight": 0.2, "after": "pinv"}, 0.1),
    ("gauss", "wiener", {"balance": 0.1}, 1.0),
    ("gauss", "richardson_lucy", {"num_iter": 10}, 1.0),
    ("gauss", "total_variation", {"weight": 0.01, "after": "wiener", "after_params": {"balance": 0.05}}, 1.0),
    ("motion", "wiener", {"balance": 0.3}, 0.3),
    ("motion", "richardson_lucy", {"num_iter": 10}, 1.0),
    ("motion", "tikhonov", {"balance": 0.03}, 2.0),
    ("gauss", "tikhonov", {"balance": 0.03}, 1.0),
    ("box", "biharmonic", {}, 1.8),
    ("box", "biharmonic", {"tv_weight": 0.01}, 2.1),
    ("random", "biharmonic", {}, 8.0),
    ("random", "total_variation", {"weight": 0.01, "after": "biharmonic"}, 8.0),
]
MADE_ONLY_FOR = {
    "pinv": LinearOperator, "tikhonov": LinearOperator, "wiener": Blur, "richardson_lucy": Blur,
    "biharmonic": InpaintingOperator,
}


def photographs(names, size):
    dataset = get_dataset("skimage", images=list(names), image_size=size)
    return torch.stack([dataset[i] for i in range(len(names))])


def measure(task, names=("astronaut", "chelsea", "coffee"), size=64, sigma=None):
    operator, params = TASKS[task]
    truth, randomness = photographs(names, size), ImageRandomness(0, names)
    noiser = get_noise("gaussian", sigma=sigma or SIGMA[task])
    measurement = Measurement.simulate(get_operator(operator, **params), noiser, truth, randomness)
    return truth, measurement, randomness


def restore(measurement, name, callback=None, **params):
    method = get_conditioning_method(name, **params)
    method.check(measurement.operator, measurement.noiser)
    return method.restore(None, None, measurement, ImageRandomness(5, ["any"] * len(measurement.y)), callback)


def psnr(truth, images):
    return np.mean([peak_signal_noise_ratio(to_unit(a).numpy(), to_unit(b).numpy(), data_range=1)
                    for a, b in zip(truth, images, strict=True)])


@pytest.mark.parametrize(("task", "name", "params", "gain"), MADE_FOR)
def test_better_than_the_lifted_measurement(task, name, params, gain):
    truth, measurement, _ = measure(task)
    restored = restore(measurement, name, **params)
    assert restored.shape == truth.shape and restored.dtype == torch.float32
    assert restored.abs().max() <= 1
    assert psnr(truth, restored) > psnr(truth, measurement.lift()) + gain


def test_every_restorer_is_made_for_something():
    assert {name for _, name, _, _ in MADE_FOR} | {"lift", "pinv"} == set(METHODS)


@pytest.mark.parametrize(("task", "name", "params"), [*(case[:3] for case in MADE_FOR), ("sr", "lift", {}),
                                                      ("sr", "pinv", {})])
def test_batch_equals_single_runs(task, name, params):
    names = ("coffee", "astronaut")
    _, measurement, _ = measure(task, names, size=48)
    batch = restore(measurement, name, **params)
    for b, image in enumerate(names):
        _, alone, _ = measure(task, (image,), size=48)
        torch.testing.assert_close(restore(alone, name, **params)[0], batch[b], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("task", "name", "params"), [case[:3] for case in MADE_FOR])
def test_colour_channels_do_not_mix(task, name, params):
    """A channel that is black in y stays black where it can be seen, whatever the others hold."""
    _, measurement, _ = measure(task, ("chelsea",), sigma=1e-4)
    y = measurement.y.clone()
    y[:, 1] = -1
    restored = restore(Measurement(measurement.operator, measurement.noiser, y), name, **params)
    assert restored[:, 1].max() < -0.98
    assert restored[:, 0].std() > 0.1 and restored[:, 2].std() > 0.1


def test_lift_is_the_lifted_measurement_clipped():
    _, measurement, _ = measure("sr")
    torch.testing.assert_close(restore(measurement, "lift"), measurement.lift().clamp(-1, 1), atol=1e-6, rtol=0)
    loud = Measurement(measurement.operator, measurement.noiser, 9 * measurement.y)
    assert restore(loud, "lift").abs().max() == 1 and np.abs(to_arrays(loud.lift())).max() > 2


def test_the_pseudo_inverse_reproduces_the_measurement():
    _, measurement, _ = measure("sr", sigma=0.01)
    quiet = Measurement(measurement.operator, measurement.noiser, 0.5 * measurement.y)          # far from the clipping
    torch.testing.assert_close(quiet.operator(restore(quiet, "pinv")), quiet.y, atol=1e-4, rtol=0)


@pytest.mark.parametrize("task", ["motion", "sr", "random"])
def test_tikhonov_minimises_what_it_says(task):
    """At the minimum A^T (A x - y) + balance D^T D x = 0; the last term by differences with zero flux at the border."""
    _, measurement, _ = measure(task, ("chelsea",), size=48)
    quiet = Measurement(measurement.operator, measurement.noiser, 0.3 * measurement.y)          # far from the clipping
    x = restore(quiet, "tikhonov", balance=0.05)
    across, down = (torch.nn.functional.pad(x.diff(dim=dim), pad) for dim, pad in [(-1, (1, 1)), (-2, (0, 0, 1, 1))])
    penalty = -across.diff(dim=-1) - down.diff(dim=-2)
    gradient = quiet.operator.transpose(quiet.operator(x) - quiet.y) + 0.05 * penalty
    assert gradient.norm() < 2e-4 * quiet.operator.transpose(quiet.y).norm()


def test_wiener_inverts_a_symmetric_blur_up_to_the_border():
    """On the periodic extension by reflection the blur is a circular convolution, so nothing is lost at the border."""
    operator = get_operator("gaussian_blur", kernel_size=9, intensity=0.8)
    truth, randomness = photographs(["coffee"], 40), ImageRandomness(0, ["coffee"])
    measurement = Measurement.simulate(operator, get_noise("clean"), truth, randomness)
    restored = restore(measurement, "wiener", balance=1e-8)
    torch.testing.assert_close(restored, truth, atol=2e-3, rtol=0)
    kernel = measurement.operator.kernel[0, 0].numpy()
    blurred = convolve(truth[0, 0].double().numpy(), kernel, mode="mirror")
    inverted = Wiener(balance=1e-8).deconvolve(blurred, kernel)
    np.testing.assert_allclose(inverted, truth[0, 0].numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["wiener", "richardson_lucy"])
def test_every_image_is_deconvolved_by_its_own_kernel(name):
    """The kernel is not turned round: with the mirrored kernels, or with each other's, the truth is farther."""
    truth, measurement, _ = measure("motion", sigma=0.01)
    right = psnr(truth, restore(measurement, name))
    kernel = measurement.operator.kernel
    for wrong in (kernel.flip(-2, -1), kernel.roll(1, dims=0)):
        measurement.operator.kernel = wrong
        assert psnr(truth, restore(measurement, name)) < right - 1


def test_richardson_lucy_fits_what_an_asymmetric_kernel_made():
    """Without noise the residual falls with every iteration, and the image comes nearer, up to its border."""
    truth, measurement, _ = measure("motion")
    exact = Measurement(measurement.operator, measurement.noiser, measurement.operator(truth))
    restored = [restore(exact, "richardson_lucy", num_iter=n) for n in (1, 5, 25, 125)]
    residuals = [exact.distance(x).max().item() for x in restored]
    scores = [psnr(truth, x) for x in restored]
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 0.1 * residuals[0]
    assert scores == sorted(scores) and scores[-1] > scores[0] + 6


@pytest.mark.parametrize("name", ["wiener", "richardson_lucy"])
def test_kernels_as_large_as_images_are_served(name):
    truth, randomness = photographs(["coffee"], 16), ImageRandomness(0, ["coffee"])
    operator = get_operator("gaussian_blur", kernel_size=31, intensity=1.0)
    measurement = Measurement.simulate(operator, get_noise("clean"), truth, randomness)
    assert psnr(truth, restore(measurement, name)) > psnr(truth, measurement.y) + 1


def test_biharmonic_keeps_observed_pixels_and_fills_a_gradient_exactly():
    ramp = torch.linspace(-0.8, 0.8, 32).expand(1, 3, 32, 32)
    operator = get_operator("inpainting", mask_opt={"mask_type": "box", "mask_len_range": [8, 8], "margin": [4, 4]})
    measurement = Measurement.simulate(operator, get_noise("clean"), ramp, ImageRandomness(0, ["ramp"]))
    torch.testing.assert_close(restore(measurement, "biharmonic"), ramp, atol=1e-4, rtol=0)
    operator = get_operator("inpainting", mask_opt={"mask_type": "random", "mask_prob_range": [0.0, 0.0]})
    measurement = Measurement.simulate(operator, get_noise("clean"), ramp, ImageRandomness(0, ["ramp"]))
    torch.testing.assert_close(restore(measurement, "biharmonic"), ramp, atol=1e-6, rtol=0)


def test_biharmonic_without_any_pixel_is_a_mistake():
    operator = get_operator("inpainting", mask_opt={"mask_type": "box", "mask_len_range": [16, 16]})
    grey, randomness = torch.zeros(1, 3, 16, 16), ImageRandomness(0, ["a"])
    measurement = Measurement.simulate(operator, get_noise("clean"), grey, randomness)
    with pytest.raises(UserError, match="an image has none; lower mask_prob_range"):
        restore(measurement, "biharmonic")


def test_a_weight_of_zero_changes_nothing():
    _, measurement, _ = measure("sr")
    torch.testing.assert_close(restore(measurement, "total_variation", weight=0), restore(measurement, "lift"))


def test_the_callback_hears_of_the_result():
    _, measurement, _ = measure("denoising")
    heard = []
    restored = restore(measurement, "total_variation", callback=lambda *call: heard.append(call))
    (step, x, distance), = heard
    assert step.index == 0 and torch.equal(step.x0_hat, restored) and torch.equal(x, restored)
    torch.testing.assert_close(distance, measurement.distance(restored))


@pytest.mark.parametrize("operator", OPERATOR_EXAMPLES)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_serves_an_operator_or_refuses_it_with_a_sentence(name, operator):
    built = get_operator(operator, **OPERATOR_EXAMPLES[operator])
    method = get_conditioning_method(name)
    assert method.serves(built) == isinstance(built, MADE_ONLY_FOR.get(name, Operator))
    if not method.serves(built):
        with pytest.raises(UserError, match=f"'{name}' needs .*found '{operator}'; methods that serve '{operator}': "
                                            ".*total_variation"):
            method.check(built)
        return
    method.check(built)
    names = ["anna", "ben"]
    x = torch.nn.functional.interpolate(ImageRandomness(7, names).randn_like(torch.empty(2, 3, 4, 4)), size=16)
    measurement = Measurement.simulate(built, get_noise("gaussian", sigma=0.05), x.clamp(-1, 1),
                                       ImageRandomness(3, names))
    assert restore(measurement, name).isfinite().all()


@pytest.mark.parametrize("name, params, message", [
    ("total_variation", {"weight": -1}, "weight is -1, expected a finite number, 0 or more"),
    ("total_variation", {"after": "dpps"}, "after is 'dpps', which needs a prior; choose from biharmonic"),
    ("total_variation", {"after": "weiner"}, "did you mean 'wiener'"),
    ("non_local_means", {"after": "wiener", "after_params": {"balanse": 1}}, "did you mean 'balance'"),
    ("non_local_means", {"h": 0}, "h is 0, expected a finite number, more than 0"),
    ("non_local_means", {"sigma": -0.1}, "sigma is -0.1"),
    ("non_local_means", {"patch_size": 0}, "patch_size is 0"),
    ("non_local_means", {"patch_distance": 0}, "patch_distance is 0"),
    ("wiener", {"balance": 0}, "balance is 0, expected a finite number, more than 0"),
    ("tikhonov", {"balance": 0}, "balance is 0, expected a finite number, more than 0"),
    ("richardson_lucy", {"num_iter": 0}, "num_iter is 0, expected an integer, 1 or more"),
    ("biharmonic", {"tv_weight": -0.1}, "tv_weight is -0.1"),
    ("lift", {"scale": 1.0}, "takes no parameters"),
])
def test_mistakes_in_parameters(name, params, message):
    with pytest.raises(UserError, match=message):
        get_conditioning_method(name, **params)


def test_denoising_after_a_deconvolution_needs_a_blur():
    method = get_conditioning_method("total_variation", after="wiener")
    with pytest.raises(UserError, match="'wiener' needs a convolution"):
        method.check(get_operator("noise"))


# ---- the command line ------------------------------------------------------------------------------------------------

@pytest.fixture
def run(workplace, capsys):
    """run(*arguments) -> (exit status, standard output, standard error), with a model file that names no checkpoint."""
    def run(*more: str) -> tuple[int, str, str]:
        status = sample_condition.main([
            "--task_config", "configs/demo_gaussian_deblur_config.yaml", "--set", "data.image_size=64",
            "--set", "model.model_path=models/none.pt", "--set", "measurement.operator.kernel_size=9", *more])
        return status, *capsys.readouterr()
    return run


def test_no_checkpoint_is_asked_for(run):
    method = ["--set", "conditioning={method: wiener, params: {balance: 0.1}}"]
    status, out, err = run(*method, "--limit", "2", "--progress", "1")
    assert status == 0, err
    assert "gaussian_blur by wiener: 2 images of 64 x 64, on CPU" in out and "mean of 2" in out and "2/2" in err
    folder = Path("results/gaussian_blur/wiener")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["images"], summary["network_evaluations"]) == (2, 0)
    assert summary["metrics"]["psnr"]["mean"] > summary["metrics"]["psnr_input"]["mean"] + 1
    assert (folder / "grid.png").is_file() and (folder / "recon/chelsea.png").is_file()
    assert (folder / "progress/astronaut/x0_hat_0000.png").is_file()
    status, out, _ = run(*method)
    assert status == 0 and "2 finished before" in out
    with open(folder / "metrics.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["astronaut", "chelsea", "coffee"]


@pytest.mark.parametrize("method, words", [
    ("biharmonic", ["needs missing pixels", "'gaussian_blur'"]),
    ("totalvariation", ["did you mean 'total_variation'", "dpps"]),
    ("ps", ["models/none.pt not found", "models/README.md"]),
])
def test_refusals_come_before_anything_is_restored(run, method, words):
    status, _, err = run("--set", f"conditioning={{method: {method}}}")
    assert status == 2 and not Path("results").exists()
    assert all(word in err for word in words), err
