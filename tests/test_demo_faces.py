"""The shipped priors of faces do what models/README.md says of them."""

import pytest
import torch

from guided_diffusion import degrade, load_prior, restore
from util.config.config import REPOSITORY, load_config

FACE = REPOSITORY / "data" / "faces" / "lon_009_08.jpg"


@pytest.fixture(scope="module")
def faces():
    return load_prior("configs/demo_faces_model_config.yaml")


@torch.no_grad()
def test_it_sees_the_mean_colour_of_noise(faces):
    """Where there is nothing but noise eps is the noise, and so is its mean, whose variance is 1 / 64^2."""
    noise = torch.randn(8, 3, 64, 64, generator=torch.manual_seed(0))
    error = faces(noise, torch.full((8,), 999))[:, :3] - noise
    assert error.square().mean() < 1e-3
    assert (64 * error.mean((2, 3))).square().mean() < 0.1


@pytest.mark.parametrize("task, classical", [("box_inpainting", "biharmonic"), ("super_resolution", "pinv"),
                                             ("128_box_inpainting", "biharmonic")])
def test_it_knows_eyes_nose_and_mouth_of_a_face_that_it_has_not_seen(task, classical):
    config = load_config(None, None, f"configs/demo_faces_{task}_config.yaml")
    operator = {"name": config.operator.name, **config.operator.params}
    size = config.model["image_size"]
    degraded = degrade(FACE, operator, config.noise.params["sigma"], size=size)
    prior, middle = load_prior(config.model), slice(20 * size // 64, 44 * size // 64)

    def error(method: dict) -> torch.Tensor:
        sample = restore(degraded, prior, method, 1).samples[0]
        return (sample - degraded.truth)[..., middle, middle].square().mean()

    assert error({"name": "dpps", **config.conditioning.params}) < 0.6 * error({"name": classical})


def test_it_finds_a_face_from_the_magnitudes_of_its_fourier_transform(faces):
    """29.5 dB; what else agrees with the magnitudes is 10 dB away."""
    config = load_config(None, None, "configs/demo_faces_phase_retrieval_config.yaml")
    operator = {"name": config.operator.name, **config.operator.params}
    degraded = degrade(FACE.with_name("lon_096_08.jpg"), operator, config.noise.params["sigma"], size=64)
    restoration = restore(degraded, faces, {"name": "dpps", **config.conditioning.params})
    assert restoration.metrics["psnr"] > 25
