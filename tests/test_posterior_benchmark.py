"""The posterior benchmark: scores that mean what they say, and the program as a user runs it."""

import json
import warnings
from pathlib import Path

import pytest
import torch

from guided_diffusion.posterior_benchmark.__main__ import FEWEST, METHODS, main
from guided_diffusion.posterior_benchmark.cases import Problem, arena
from guided_diffusion.posterior_benchmark.report import Row, draw_distances, table
from guided_diffusion.posterior_benchmark.scores import LEVELS, average, score
from guided_diffusion.priors.distributions import GaussianMixture
from guided_diffusion.priors.gaussians import DiagonalGaussian
from guided_diffusion.restoration.catalogue import METHODS as ALL
from tests.helpers import normal

D = 6
SHAPE = (1, 1, D)


def standard(n, seed=0):
    return normal(n, D, seed=seed)


def judged(x, posterior=None):
    return score(x, standard(len(x), seed=9), posterior or DiagonalGaussian(torch.zeros(SHAPE), 1.0), SHAPE, 1.0)


def test_exact_samples_have_no_error():
    """Bias 0, ratio 1, MMD^2 0, and the coverage of every level, within the error of 800 samples."""
    found = average([judged(standard(200, seed)) for seed in range(4)])
    assert found.bias < 0.05 and found.variance_ratio == pytest.approx(1, abs=0.07)
    assert abs(found.mmd) < 0.01 and found.sliced_w2 < 0.25
    assert list(found.coverage) == list(LEVELS)
    assert all(found.coverage[level] == pytest.approx(level, abs=0.02) for level in LEVELS)


@pytest.mark.parametrize("shift, scale", [(2.0, 1.0), (0.0, 0.5), (0.0, 3.0)])
def test_shifted_and_scaled_samples(shift, scale):
    """Closed forms: bias, trace ratio, W2^2 = shift^2 + (scale - 1)^2 along every axis, and coverage."""
    found = judged(shift + scale * standard(600))
    assert found.bias == pytest.approx(shift, abs=0.1)
    assert found.variance_ratio == pytest.approx(scale ** 2, rel=0.08)
    assert found.sliced_w2 == pytest.approx((shift ** 2 + (scale - 1) ** 2) ** 0.5, rel=0.15)
    assert found.mmd > 5 * found.mmd_error > 0
    q = torch.special.ndtri(torch.tensor(0.95).double())
    expected = torch.special.ndtr(shift + scale * q) - torch.special.ndtr(shift - scale * q)
    assert found.coverage[0.9] == pytest.approx(expected.item(), abs=0.02)


def test_the_fewest_samples_have_finite_scores():
    found = judged(standard(FEWEST))
    assert 0 < found.mmd_error < 1 and 0 < found.sliced_w2_error < 1


def test_weights_of_modes():
    far = torch.full(SHAPE, 8.0)
    posterior = GaussianMixture([DiagonalGaussian(far, 1.0), DiagonalGaussian(-far, 1.0)], [0.3, 0.7])
    x = torch.cat([standard(50) + 8, standard(50) - 8])
    found = judged(x, posterior)
    assert found.modes == pytest.approx([0.5, 0.5]) and found.exact_modes == pytest.approx([0.3, 0.7])
    assert found.mode_error == pytest.approx(0.2)


def test_the_arena_has_one_measurement_per_image_and_its_posterior():
    place = arena(Problem("plane", "colorization", 0.1), images=2, samples=500, seed=0)
    y = place.measurement.y.flatten()
    assert (y[:500] == y[0]).all() and (y[500:] == y[500]).all() and y[0] != y[500]
    exact = place.exact_samples()
    chi_square = place.measurement.chi_square(exact.float())
    assert 0.3 < chi_square.mean().item() < 2
    assert len(place.posteriors) == 2


def test_the_default_suite_has_every_method_with_a_prior():
    brackets, variants = {"exact", "vanilla"}, {"ps+", "ilvr"}
    names = {text.partition(":")[0] for text in METHODS}
    assert {name for name in ALL if ALL.build(name).needs_prior} == names | brackets | variants


ARGUMENTS = ["--priors", "plane", "--operators", "noise", "--sigma", "0.3", "--steps", "3,2", "--images", "2",
             "--samples", "20", "--methods", "ps:likelihood=gaussian", "ddrm"]


def test_a_row_whose_samples_diverged_has_empty_cells():
    _, header, row = table([Row("blur", "mcg", 20, 20, 1.0, None)]).splitlines()
    assert header.split()[-1] == "evals" and row.split() == ["mcg", "(20)", "diverged", "20"]


def test_a_restorer_that_evaluates_no_network_is_drawn_without_a_warning(tmp_path):
    rows = [Row("blur", name, 2, evaluations, 1.0, judged(standard(FEWEST)))
            for name, evaluations in (("exact", 0), ("unconditional", 2), ("lift", 0))]
    with warnings.catch_warnings(action="error"):
        draw_distances(rows, tmp_path / "distances.png")


def test_the_program(workplace, capsys):
    """Tables, files and plots; another method adds its rows to what is there, and nothing is done again."""
    assert main([*ARGUMENTS, "--out", "out"]) == 0
    text = capsys.readouterr().out
    folder = workplace / "out"
    assert "left" in text and (folder / "posterior_benchmark.txt").read_text() in text + "\n"
    tree = json.loads((folder / "posterior_benchmark.json").read_text())
    methods = ["exact", "unconditional", "ps:likelihood=gaussian", "ddrm"]
    assert {row["method"] for row in tree["rows"]} == set(methods)
    assert [row["method"] for row in tree["rows"]] == methods * 2       # noise, and colorization
    assert all(row["scores"]["variance_ratio"] > 0 for row in tree["rows"])
    assert {path.suffix for path in folder.iterdir() if path.is_file()} == {".txt", ".json", ".png"}
    assert main([*ARGUMENTS, "ddnm", "--out", "out"]) == 0
    progress = [line for line in capsys.readouterr().out.splitlines() if "left" in line]
    assert len(progress) == 2 and all("ddnm (3,2)" in line for line in progress)


@pytest.mark.parametrize("options, words", [
    (["--priors", "plane", "gausian"], "unknown prior 'gausian'; did you mean 'gaussian'?"),
    (["--methods", "pss"], "unknown conditioning method 'pss'; did you mean 'ps'"),
    (["--methods", "ps:scale=-1"], "scale is -1"),
    (["--priors", "gaussian", "--operators", "hdr"], "closed form for operator 'hdr'; choose from"),
    (["--sigma", "0"], "'0' is no positive number"),
    (["--steps", "3,0"], "'0' is not a whole number"),
    (["--samples", "7"], "'7' is not a whole number of 8 or more"),
    (["--steps", "3", "1001"], "expected at most 1000"),
    (["--operators", "noise", "hdr"], "closed form for operator 'hdr'; choose from"),
    (["--out", "file"], "--out file cannot be written")])
def test_mistakes_end_with_status_2_and_a_sentence(workplace, capsys, options, words):
    Path("file").write_text("in the way")
    assert main([*ARGUMENTS, *options]) == 2
    assert words in capsys.readouterr().err
    assert not Path("results").exists()                                 # nothing was drawn before


def test_another_seed_needs_another_folder(workplace, capsys):
    (workplace / "out").mkdir()
    (workplace / "out/posterior_benchmark.json").write_text('{"settings": {"seed": 1}, "rows": []}')
    assert main([*ARGUMENTS, "--out", "out"]) == 2
    assert "made with another images" in capsys.readouterr().err
