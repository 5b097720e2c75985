"""Faults of one line, and whether the tests catch them: `python -m tests.faults` plants each in a copy of the tree.

    python -m tests.faults                  # all, one after the other
    python -m tests.faults norm lock        # those whose words hold one of these
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("configs", "data", "docs", "guided_diffusion", "models", "tests", "util", "README.md", "pyproject.toml",
          "sample_condition.py", "requirements.txt")
LONGEST = 600                                       # seconds of the tests of one fault


class Fault(NamedTuple):
    """Words for it, the file, what stands there, what is put in its place, and the tests that should fail."""

    words: str
    file: str
    right: str
    wrong: str
    tests: str


GD = "guided_diffusion/"
FAULTS = [
    Fault("alpha_bar exchanged with its root", GD + "schedule.py", "return np.sqrt(self.alphas_cumprod)\n",
          "return self.alphas_cumprod\n", "test_schedule.py"),
    Fault("posterior mean: alpha_bar of the wrong state", GD + "schedule.py",
          "return self.betas * np.sqrt(self.alphas_cumprod_prev)", "return self.betas * np.sqrt(self.alphas_cumprod)",
          "test_schedule.py"),
    Fault("respacing: off by one", GD + "schedule.py", "(size - 1) / (count - 1)", "size / (count - 1)",
          "test_schedule.py"),
    Fault("q_sample: noise subtracted", GD + "schedule.py",
          '                + self.at("sqrt_one_minus_alphas_cumprod", index, x0) * noise)',
          '                - self.at("sqrt_one_minus_alphas_cumprod", index, x0) * noise)', "test_diffusion.py"),
    Fault("x0_hat: sign of eps", GD + "posterior_mean_variance.py",
          '- at("sqrt_recipm1_alphas_cumprod", index, x_t) * output)',
          '+ at("sqrt_recipm1_alphas_cumprod", index, x_t) * output)', "test_mean_variance.py"),
    Fault("dynamic threshold over the batch", GD + "posterior_mean_variance.py",
          "magnitudes = x0.abs().flatten(1) ", "magnitudes = x0.abs().reshape(1, -1) ", "test_mean_variance.py"),
    Fault("standard deviation: variance taken for it", GD + "gaussian_diffusion.py",
          "return mean, torch.exp(log_variance / 2)", "return mean, torch.exp(log_variance)", "test_trajectories.py"),
    Fault("ddim: sigma not squared", GD + "gaussian_diffusion.py", "1 - prev - self.sigma(index) ** 2",
          "1 - prev - self.sigma(index)", "test_diffusion.py"),
    Fault("renoise: alpha_bar of the wrong state", GD + "gaussian_diffusion.py",
          "return math.sqrt(1 - self.schedule.alphas_cumprod_prev[index])",
          "return math.sqrt(1 - self.schedule.alphas_cumprod[index])", "test_diffusion.py"),
    Fault("timestep embedding: sines first", GD + "nn.py", "torch.cat([angles.cos(), angles.sin()], dim=1)",
          "torch.cat([angles.sin(), angles.cos()], dim=1)", "test_unet.py"),
    Fault("a dropped normalisation", GD + "nn.py", "        h = self(x)\n", "        h = x\n",
          "test_unet.py test_nn.py"),
    Fault("fused gradient: a mean left out", GD + "frozen.py", "sums[1] += torch.mul(g, x_hat_piece, out=z)",
          "sums[0] += torch.mul(g, x_hat_piece, out=z)", "test_nn.py"),
    Fault("norm over the batch", GD + "measurements/base.py",
          "torch.linalg.vector_norm((y - prediction).flatten(1), dim=1)",
          "torch.linalg.vector_norm(y - prediction).expand(len(y))", "test_noise.py"),
    Fault("projection: measurement and prediction exchanged", GD + "measurements/base.py",
          "x - self.pinv(self(x) - y)", "x - self.pinv(y - self(x))", "test_operators.py test_pinv.py"),
    Fault("SR: pseudo-inverse in place of the adjoint", GD + "measurements/super_resolution.py",
          "apply_matrices(y, self.height.mT, self.width.mT)",
          "apply_matrices(y, self.height_pinv, self.width_pinv)", "test_operators.py"),
    Fault("block averages: adjoint off by the factor", GD + "measurements/sr_average.py",
          "self.pinv(y) / self.scale_factor ** 2", "self.pinv(y) / self.scale_factor", "test_operators.py"),
    Fault("phase retrieval: no oversampling", GD + "measurements/phase_retrieval.py",
          "side + 2 * int(self.oversample / 8 * side)", "side + int(self.oversample / 8 * side)",
          "test_phase_retrieval.py"),
    Fault("noise: sigma on the other scale", GD + "measurements/noise.py",
          "2 * sigma if tuple(scale) == UNIT_RANGE else sigma", "sigma if tuple(scale) == UNIT_RANGE else 2 * sigma",
          "test_noise.py"),
    Fault("poisson: counts of the wrong peak", GD + "measurements/noise.py",
          "self.peak, self.likelihood = GREY_LEVELS * rate", "self.peak, self.likelihood = (GREY_LEVELS + 1) * rate",
          "test_noise.py"),
    Fault("chi-square: masked entries counted", GD + "measurements/measurement.py",
          "return found.flatten(1).sum(1) / (informative * expected).flatten(1).sum(1)",
          "return found.flatten(1).sum(1) / expected.flatten(1).sum(1)", "test_masks.py"),
    Fault("conjugate gradients: damping not squared", GD + "measurements/conjugate_gradients.py",
          "column(damping ** 2, x)", "column(damping, x)", "test_pinv.py"),
    Fault("DPS: guidance uphill", GD + "condition_methods/posterior_sampling.py", "return -size * grad, distance",
          "return size * grad, distance", "test_condition_equations.py test_condition_methods.py"),
    Fault("DPS: step not scaled with fewer steps", GD + "condition_methods/posterior_sampling.py",
          "(step.stride if self.rescale else 1)", "(1 if self.rescale else step.stride)", "test_step_size.py"),
    Fault("DPPS: the worst candidate", GD + "condition_methods/dpps.py", ".norm(dim=2).min(dim=0)",
          ".norm(dim=2).max(dim=0)", "test_dpps.py"),
    Fault("DPPS: signal-to-noise ratio turned over", GD + "condition_methods/dpps.py",
          "step.alpha_bar / (1 - step.alpha_bar)", "(1 - step.alpha_bar) / step.alpha_bar", "test_dpps.py"),
    Fault("DPPS: start from the last step's noise level", GD + "condition_methods/dpps.py",
          "measurement.initial_guess(), sampler.num_steps - 1, noise", "measurement.initial_guess(), 0, noise",
          "test_dpps.py test_trajectories.py"),
    Fault("stationary: gradients a step early", GD + "condition_methods/likelihoods.py", "index in self.gradients",
          "index - 1 in self.gradients", "test_guidance.py"),
    Fault("projection: y_t at another noise level", GD + "condition_methods/base.py",
          "math.sqrt(1 - step.alpha_bar) * step.randomness", "math.sqrt(1 - step.alpha_bar_prev) * step.randomness",
          "test_condition_equations.py"),
    Fault("total variation: channels coupled", GD + "solvers/admm_tv.py", "v.square().sum(2, keepdim=True)",
          "v.square().sum((1, 2), keepdim=True)", "test_admm.py"),
    Fault("PnP-ADMM: the sign of the dual", GD + "solvers/pnp_admm.py", "u = u + x - z", "u = u - x + z",
          "test_admm.py"),
    Fault("DnCNN: zeros in place of a period", GD + "priors/dncnn.py", 'Release(1e-5, "circular")',
          'Release(1e-5, "zeros")', "test_dncnn.py"),
    Fault("OSS: HIO", GD + "solvers/phase_retrieval.py", "torch.where(constraints.support, g, smoothed)", "g",
          "test_iterated_projections.py"),
    Fault("HIO: negative pixels kept", GD + "solvers/phase_retrieval.py", "self.support & (g >= 0)",
          "self.support.expand_as(g)", "test_iterated_projections.py"),
    Fault("StyleGAN2: not demodulated", GD + "priors/stylegan2.py", "        if self.demodulate:\n",
          "        if False:\n", "test_stylegan2.py"),
    Fault("padding: to a smaller multiple", GD + "priors/tiling.py", "math.ceil(x_t.shape[dim] / self.multiple)",
          "math.floor(x_t.shape[dim] / self.multiple)", "test_observed.py"),
    Fault("streams: sample left out of the key", "util/seeding.py",
          '(str(self.seed), self.purpose, name, str(sample))', '(str(self.seed), self.purpose, name)',
          "test_seeding.py"),
    Fault("streams: a draw from the wrong one", "util/seeding.py",
          'self.samples if purpose == "sampling" else None', "self.samples", "test_seeding.py"),
    Fault("8 bits: cut in place of rounded", "util/img_utils.py", ".mul(255).round().to(torch.uint8)",
          ".mul(255).to(torch.uint8)", "test_img_utils.py"),
    Fault("a file written in place", "util/files.py", "            temporary.replace(path)\n",
          "            path.write_bytes(content)\n            temporary.unlink()\n",
          "test_img_utils.py test_trouble.py"),
    Fault("a checkpoint that runs code", "util/checkpoint.py", "weights_only=True)\n", "weights_only=False)\n",
          "test_security_code.py test_checkpoint.py"),
    Fault("names of tensors not compared", "util/checkpoint.py",
          '"unexpected ": [name for name in found if name not in wanted]', '"unexpected ": []', "test_checkpoint.py"),
    Fault("an unlocked folder", "util/run/lock.py", "lock.acquire()", "id(lock)",
          "test_resume.py test_distributed.py"),
    Fault("a diverged sample scored", GD + "restoration/monitor.py",
          "finite = x.isfinite().flatten(1).all(dim=1)", "finite = x.isfinite().flatten(1).any(dim=1)",
          "test_trouble.py"),
    Fault("a swallowed error", GD + "restoration/batches.py", "            if not is_out_of_memory(error):\n"
          "                raise\n            self.fits", "            self.fits",
          "test_fast_options.py test_trouble.py test_background.py"),
    Fault("an unreadable image ends with 0", GD + "restoration/ending.py", "return 1 if unreadable or",
          "return 1 if", "test_trouble.py test_cli_mistakes.py"),
    Fault("finished images restored again", GD + "restoration/plan.py", "if not run.finished(name):",
          "if run.finished(name):", "test_resume.py"),
    Fault("bootstrap: samples taken for images", "util/metrics/statistics.py",
          "_, group = np.unique([image for image, _ in order], return_inverse=True)",
          "group = np.arange(len(order))", "test_statistics.py"),
    Fault("ST-LPIPS: features of any length", "util/metrics/shift_tolerant.py",
          "yield x / (x.norm(dim=1, keepdim=True) + 1e-10)", "yield x", "test_st_lpips.py"),
    Fault("a table of before there was ST-LPIPS stays without", "util/reproduce_table/scores.py",
          'if column == "st_lpips" and all(', 'if column == "" and all(', "reproduce_table/test_figures.py"),
    Fault("unknown keys of a configuration accepted", "util/config/registry.py",
          "        if key not in accepted:\n", "        if key is None:\n", "test_registry.py"),
    Fault("bounds not checked", "util/config/registry.py", "and all(value in bounds for bounds in arguments[1:])", "",
          "test_registry.py"),
    Fault("the network that a task names counts more than the option's", "util/config/config.py",
          "return file if given is None else given", "return file", "test_config.py"),
    Fault("--set: the last level forgotten", "util/config/config.py", "    section[keys[-1]] = value\n",
          "    section[keys[0]] = value\n", "test_config.py"),
    Fault("training: bound not in bits", GD + "training/losses.py", "nats.flatten(1).mean(1) / math.log(2)",
          "nats.flatten(1).mean(1)", "training/test_losses.py"),
    Fault("training: the learned variance trains the mean", GD + "training/losses.py", "eps.detach(), variance)",
          "eps, variance)", "training/test_losses.py"),
    Fault("training: processes draw the same noise", GD + "train.py",
          "return index[self.rank::self.world], noise[self.rank::self.world]",
          "return index[:len(x0)], noise[:len(x0)]", "training/test_train.py"),
    Fault("training: dropout that depends on where a run began", GD + "train.py",
          "        torch.manual_seed(self._key(1 + self.rank))", "        self._key(1 + self.rank)",
          "training/test_train.py"),
    Fault("training: a step that a signal divides", GD + "train.py", "with undivided(), torch.no_grad():",
          "with torch.no_grad():", "training/test_train.py"),
    Fault("pictures of a finished image not looked at", "util/run/directory.py",
          " and all(map(is_whole_png, pictures))", "", "test_resume.py"),
    Fault("kernels: not normalised", GD + "measurements/kernels.py", "profile /= profile.sum()",
          "profile /= profile.max()", "test_kernels.py"),
    Fault("proximal map: r for r^2", GD + "measurements/data_steps.py", "return svd.v(r2 * s / (r2 * s ** 2",
          "return svd.v(r2 * s / (r2 * s", "test_data_steps.py"),
    Fault("proximal map by iterations: V not rooted", GD + "measurements/data_steps.py",
          "return (column(least, v) / v).sqrt(), least", "return column(least, v) / v, least", "test_data_steps.py"),
    Fault("conditional draw: y left as it is", GD + "measurements/data_steps.py",
          "measurement.y + variance(measurement).sqrt() * ", "measurement.y + 0 * ", "test_data_steps.py"),
    Fault("langevin: sqrt(h) for sqrt(2 h)", GD + "measurements/data_steps.py", "(2 * h).sqrt()", "h.sqrt()",
          "test_data_steps.py"),
    Fault("descent: a length that forgets the prior", GD + "measurements/data_steps.py", " + square / r2).clamp_min",
          ").clamp_min", "test_gaussian_solvers.py"),
    Fault("diffpir: lambda inverted", GD + "condition_methods/diffpir.py", "(1 - ab) / ab / self.lam",
          "(1 - ab) / ab * self.lam", "test_gaussian_solvers.py"),
    Fault("dmps: the factor of x0_hat left out", GD + "condition_methods/dmps.py", "self.scale * step.x0_coef * move",
          "self.scale * move", "test_gaussian_solvers.py"),
    Fault("pigdm: r_t^2 of variance exploding", GD + "condition_methods/pigdm.py", "1 - ab, UNASKED",
          "(1 - ab) / ab, UNASKED", "test_gaussian_solvers.py"),
    Fault("tmpd: noise not over r", GD + "condition_methods/tmpd.py", "variance(measurement) / ratio",
          "variance(measurement)", "test_gaussian_solvers.py"),
    Fault("dsg: radius of one pixel", GD + "condition_methods/dsg.py", "column(norm(step.std), grad), step.std",
          "step.std, step.std", "test_gaussian_solvers.py"),
    Fault("fast_dips: dual forgotten", GD + "condition_methods/fast_dips.py", "nearest(prediction + u)",
          "nearest(prediction)", "test_gaussian_solvers.py"),
    Fault("daps: noise of the level before", GD + "solvers/daps.py", "u = x + sigma * ", "u = x + 1.2 * sigma * ",
          "test_gaussian_solvers.py"),
    Fault("pnp_dm: rho for rho^2", GD + "solvers/pnp_dm.py", "x, sigma[level] ** 2,", "x, sigma[level],",
          "test_gaussian_solvers.py"),
    Fault("red_diff: weight of the posterior without s", GD + "solvers/red_diff.py", "(weakest / s,",
          "(weakest + 0 * s,", "test_gaussian_solvers.py"),
    Fault("red_diff: moves of one length", GD + "solvers/red_diff.py", "** 0.5 if self.posterior",
          "** 0.0 if self.posterior", "test_gaussian_solvers.py"),
    Fault("sitcom: all images go on", GD + "solvers/sitcom.py",
          "torch.where(column(active, v), v + adam.move(gradient), v)", "v + adam.move(gradient)",
          "test_gaussian_solvers.py test_solver_loops.py"),
    Fault("dcps: one bridge for all levels", GD + "solvers/dcps.py", "ratio = step.alpha_bar / ab_tau ",
          "ratio = step.alpha_bar ", "test_gaussian_solvers.py"),
    Fault("fps_smc: the first weight over what nobody counted", GD + "solvers/fps_smc.py", " if counted else 0.0", "",
          "test_particles.py"),
    Fault("mcgdiff: every potential counts", GD + "solvers/mcgdiff.py", "on = led * ", "on = 0 * led * ",
          "test_particles.py"),
]


def copy_of_the_tree(place: Path) -> None:
    """What the tests need, in `place`."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, place / name)


def is_caught(fault: Fault, place: Path) -> bool:
    """Whether one of its tests fails with the fault in the copy, which is as it was afterwards."""
    file = place / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.right) < 1:
        raise SystemExit(f"{fault.words}: {fault.file} no longer holds {fault.right!r}; bring the fault up to date")
    file.write_text(text.replace(fault.right, fault.wrong, 1), encoding="utf-8")
    try:
        tests = [f"tests/{name}" for name in fault.tests.split()]
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests], cwd=place,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=LONGEST)
        return done.returncode == 1
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(text, encoding="utf-8")


def main(words: list[str]) -> int:
    """Plant the faults; exit status 1 if the tests miss one."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.words for word in words)]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        copy_of_the_tree(Path(folder))
        for fault in chosen:
            caught = is_caught(fault, Path(folder))
            sys.stdout.write(f"{'caught' if caught else 'MISSED'}  {fault.words} ({fault.file})\n")
            sys.stdout.flush()
            missed += [] if caught else [fault]
    sys.stdout.write(f"{len(chosen) - len(missed)} of {len(chosen)} faults are caught\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
