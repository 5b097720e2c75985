"""Whole restorations, step by step, against recorded runs of the official code with the same noise.

The official `project` is wrong for blur and inpainting and uses nearest-neighbour upsampling for A^+ in
super-resolution. For mcg and projection the recorded arithmetic is therefore checked with the official `project` put
into the operator here; the methods with the true projection are tested in test_condition_equations.py.
"""

import functools
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import Measurement, get_noise, get_operator
from guided_diffusion.unet import create_model
from tests.conftest import golden_path
from tests.helpers import ReplayedRandomness, fill_network
from util.seeding import ImageRandomness

SUGGESTED_ATOL = {
    "dps_ps_sr4_ddpm": 2e-4, "dps_ps_inpaint_ddpm": 2e-3, "dps_ps_gblur_ddpm": 7e-4, "dps_ps_sr4_poisson_ddpm": 3e-4,
    "dps_ps_gblur_poisson_ddpm": 2e-3, "dps_ps_sr4_ddim_eta0": 6e-4, "dps_ps_inpaint_ddim_eta05": 5e-4,
    "dps_psplus_sr4_ddpm": 2e-4, "dps_psplus_gblur_ddpm": 7e-4, "dps_mcg_sr4_ddpm": 2e-4, "dps_mcg_inpaint_ddpm": 8e-4,
    "dps_mcg_gblur_ddpm": 3e-4, "dps_projection_sr4_ddpm": 1e-4, "dps_projection_gblur_ddpm": 1e-4,
    "dps_vanilla_ddpm": 1e-4, "dps_vanilla_ddim_eta05": 2e-4, "dps_ps_sr4_fixedlarge_ddpm": 2e-4,
    "dps_ps_phase_ddpm": 2e-4,
    "dpps_sr4": 2e-4, "dpps_inpaint": 8e-4, "dpps_gblur": 5e-4,
}
DPPS = [name for name in SUGGESTED_ATOL if name.startswith("dpps")]
PURPOSES = {"vanilla": ("p_sample",), "ps": ("p_sample",), "ps+": ("p_sample",), "dpps": ("candidates",),
            "mcg": ("p_sample", "q_sample(measurement)"), "projection": ("p_sample", "q_sample(measurement)")}


@functools.cache
def network(name: str):
    entry = json.loads(golden_path("unet_configs.json").read_text())[name]
    return fill_network(create_model(**entry["config"]), entry["salt"])


def official_projection(operator):
    """The `project` of the official code: x - up(A x) + up(y) for super-resolution, y - A y - A x elsewhere."""
    def project(x, y):
        if operator.name != "super_resolution":
            return y - operator(y) - operator(x)
        return x - interpolate(operator(x), scale_factor=4) + interpolate(y, scale_factor=4)
    return project


def prepared_operator(spec: dict, arrays: dict):
    params = {key: value for key, value in spec.items() if key != "name"}
    if spec["name"] == "inpainting":
        params["mask_opt"] = {"mask_type": "random", "mask_prob_range": [0.5, 0.5]}
    if spec["name"] == "phase_retrieval":               # the official code pads by 64 pixels at any size
        params["oversample"] = 8 * 64 / 32
    operator = get_operator(spec["name"], **params).prepare((1, 3, 32, 32), ImageRandomness(0, ["photograph"]))
    if spec["name"] == "inpainting":
        operator.mask = torch.from_numpy(arrays["mask"]).float()
    operator.project = official_projection(operator)
    return operator


class Recording:
    """One recorded run: what it was given, and what it did."""

    def __init__(self, name: str, golden):
        self.config = json.loads(golden_path("trajectories.json").read_text())[name]
        self.arrays = golden(f"trajectory_{name}")
        operator = prepared_operator(self.config["operator"], self.arrays)
        noise = {**self.config["noise"]}
        y = torch.from_numpy(self.arrays["measurement"]).float()
        self.measurement = Measurement(operator, get_noise(noise.pop("name"), **noise), y)
        eta = self.config["ddim_eta"]
        self.sampler = create_sampler(**{**self.config["diffusion"], "sampler": "ddpm" if eta is None else "ddim",
                                         "eta": eta or 0.0})
        self.params = dict(self.config["params"])
        if self.config["method"] in ("ps", "dpps"):     # the official steps do not grow where they are fewer
            self.params["likelihood"] = {"name": "point", "rescale": False}
        elif "scale" in self.params:
            self.params["rescale"] = False
        self.method = get_conditioning_method(self.config["method"], **self.params)

    def draws(self, *purposes: str) -> list[torch.Tensor]:
        """The recorded draws of these purposes, one tensor (1, ...) per draw."""
        return [draw[None] for entry in self.config["noise_order"] if entry["purpose"] in purposes
                for draw in torch.from_numpy(self.arrays[f"noise_{entry['index']:03d}"]).float()]

    def replay(self) -> tuple[list, ReplayedRandomness]:
        """Run our code on the recorded draws; returns [(step, x_prev, distance)] and the draws left over."""
        randomness = ReplayedRandomness(self.draws(*PURPOSES[self.config["method"]]), self.draws("ps+ uniform"))
        seen = []
        self.method.start = lambda *given: torch.from_numpy(self.arrays["x_T"])
        self.method.restore(network(self.config["unet"]), self.sampler, self.measurement, randomness,
                            lambda *triple: seen.append(triple))
        return seen, randomness


@pytest.mark.parametrize("name", SUGGESTED_ATOL)
def test_every_step(name, golden):
    recording = Recording(name, golden)
    seen, left_over = recording.replay()
    np.testing.assert_array_equal(recording.sampler.schedule.timesteps, recording.arrays["timestep_map"])
    unused = recording.arrays["n_candidates"][-1] if name in DPPS else 0
    assert (len(left_over.normal), len(left_over.uniform)) == (unused, 0)
    assert [step.index for step, _, _ in seen] == list(range(9, -1, -1))
    for (_, x, _), expected in zip(seen, recording.arrays["x"], strict=True):
        np.testing.assert_allclose(x.numpy(), expected, atol=SUGGESTED_ATOL[name], rtol=0)
    for (step, _, _), expected in zip(seen, recording.arrays["x0_hat"], strict=True):
        np.testing.assert_allclose(step.x0_hat.detach().numpy(), expected, atol=0.01, rtol=0)
    if recording.method.needs_grad:
        distances = [distance.item() for _, _, distance in seen]
        np.testing.assert_allclose(distances, recording.arrays["distances"], rtol=1e-4)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("name", DPPS)
def test_dpps_candidates(name, chunk, golden):
    """Number of candidates, every candidate's distance and the choice, at all steps but the last."""
    recording = Recording(name, golden)
    recording.method = get_conditioning_method("dpps", **recording.params, chunk=chunk)
    scores = []

    def recorded_residual(*arguments):
        residual = type(recording.method).residual(recording.method, *arguments)

        def call(z):
            out = residual(z)
            scores[-1].extend(out.flatten(1).norm(dim=1).tolist())
            return out
        scores.append([])
        return call
    recording.method.residual = recorded_residual
    recording.replay()
    arrays = recording.arrays
    assert [len(s) for s in scores] == arrays["n_candidates"][:-1].tolist()
    assert [int(np.argmin(s)) for s in scores] == arrays["best_index"][:-1].tolist()
    expected = arrays["candidate_distances"][:arrays["candidate_offsets"][-2]]
    np.testing.assert_allclose(np.concatenate(scores), expected, rtol=1e-4)


@pytest.mark.parametrize("name", DPPS)
def test_dpps_start(name, golden):
    recording = Recording(name, golden)
    randomness = ReplayedRandomness(recording.draws("aligned start q_sample"))
    start = recording.method.start(recording.sampler, recording.measurement, randomness)
    np.testing.assert_allclose(start.numpy(), recording.arrays["x_T"], atol=2e-6)
