"""Several posterior samples of an image: batches, mean, standard deviation and what is said of them."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataloader import get_dataset, make_batches, read_images
from guided_diffusion.condition_methods import ConditioningMethod
from guided_diffusion.restoration.plan import DEFAULT_BATCH_PIXELS, default_entries
from util.img_utils import save_map
from util.metrics.scores import Scores
from util.run.directory import RunDirectory
from util.run.table import MEAN, Outcome, spread, standard_deviation


def outcomes(samples: torch.Tensor) -> list[Outcome]:
    """Outcomes of samples (K, 3, H, W), and their mean."""
    named = [*((str(k), x) for k, x in enumerate(samples)), (MEAN, samples.mean(0))]
    return [Outcome(name, x, distance=1.0, chi_square=1.0, seconds=1.0, network_evaluations=1) for name, x in named]


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 9), (2, [2, 1] * 3), (3, [3] * 3), (4, [3] * 3), (5, [3] * 3),
                                               (6, [6, 3]), (8, [6, 3]), (9, [9]), (50, [9])])
def test_samples_of_an_image_are_in_one_batch_where_they_fit(batch_size, sizes):
    batches = list(make_batches(read_images(get_dataset("skimage", image_size=8), range(3)), batch_size, num_samples=3))
    entries = [entry for batch in batches for entry in zip(batch.names, batch.samples, strict=True)]
    assert entries == [(name, k) for name in ("astronaut", "chelsea", "coffee") for k in range(3)]
    assert all(len(batch.names) <= batch_size for batch in batches)
    if batch_size >= 3:
        assert [len(batch.names) for batch in batches] == sizes
        assert all(len(batch.names) % 3 == 0 for batch in batches)


def test_images_of_another_shape_begin_another_batch(tmp_path):
    for name, size in {"a": (8, 6), "b": (8, 6), "c": (6, 8), "d": (8, 6)}.items():
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    dataset = get_dataset("folder", root=str(tmp_path), observed=True)
    assert [batch.names for batch in make_batches(read_images(dataset, range(4)), 8)] == [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize("num_samples, more, sizes", [("8", [], [8, 8]), ("5", [], [5, 5]),
                                                      ("5", ["--batch_size", "3"], [3, 2, 3, 2]),
                                                      ("5", ["--batch_size", "10"], [10])])
def test_all_samples_run_together_unless_the_user_says_otherwise(run, monkeypatch, num_samples, more, sizes):
    seen = []

    def restore(self, model, sampler, measurement, *rest):
        seen.append(len(measurement.y))
        return measurement.lift()

    monkeypatch.setattr(ConditioningMethod, "restore", restore)
    monkeypatch.setitem(DEFAULT_BATCH_PIXELS, "cpu", 4 * 32 ** 2)
    status, _, err = run("--num_samples", num_samples, "--limit", "2", *more)
    assert status == 0, err
    assert seen == sizes


def test_batches_are_small_on_a_processor_and_large_on_a_gpu():
    assert [default_entries(side, torch.device("cpu")) for side in (None, 64, 128, 256, 512)] == [1, 16, 4, 1, 1]
    assert [default_entries(side, torch.device("cuda:1")) for side in (None, 128, 256, 512, 1024)] == [1, 32, 8, 2, 1]


def test_samples_mean_and_deviation_are_written_and_scored(run):
    assert run("--num_samples", "3", "--limit", "1")[0] == 0
    folder = Path("results/super_resolution/dpps")
    names = {"astronaut_mean.npy", *(f"astronaut_{s}.png" for s in ("0", "1", "2", "mean"))}
    assert {file.name for file in (folder / "recon").iterdir()} == names
    with Image.open(folder / "std/astronaut.png") as image:
        levels = np.asarray(image.convert("RGB")).astype(int)
    assert np.ptp(levels, axis=2).max() > 100                           # in colour
    with open(folder / "metrics.csv", newline="") as file:
        *samples, mean = csv.DictReader(file)
    assert all(row["std"] == row["error_to_std"] == "" and row["psnr"] for row in samples)
    images = np.stack([np.asarray(Image.open(folder / "recon" / f"astronaut_{k}.png")) / 255 for k in range(3)])
    truth = np.asarray(Image.open(folder / "label/astronaut.png")) / 255
    s = np.sqrt(images.var(axis=0, ddof=1).mean())
    assert float(mean["std"]) == pytest.approx(s, rel=0.01)
    error = np.sqrt(((images.mean(0) - truth) ** 2).mean())
    assert float(mean["error_to_std"]) == pytest.approx(error / (s * math.sqrt(4 / 3)), rel=0.01)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["metrics_of_sample_means"]["std"]["mean"] == pytest.approx(s, rel=0.01)
    (folder / "std/astronaut.png").unlink()
    assert "finished before" not in run("--num_samples", "3", "--limit", "1")[1]
    assert (folder / "std/astronaut.png").is_file()
    assert "finished before" in run("--num_samples", "3", "--limit", "1")[1]


def test_one_sample_has_no_deviation(run):
    assert run("--limit", "1")[0] == 0
    assert not Path("results/super_resolution/dpps/std").exists()
    assert standard_deviation(outcomes(torch.zeros(1, 3, 4, 4))[:1]) is None
    assert all(map(math.isnan, spread(outcomes(torch.zeros(1, 3, 4, 4))[:1], None)))


def test_overwriting_removes_the_deviation(run):
    assert run("--limit", "1", "--num_samples", "2")[0] == 0
    assert run("--limit", "1", "--overwrite")[0] == 0
    assert not list(Path("results/super_resolution/dpps/std").iterdir())


def test_the_spread_is_right_for_a_known_posterior():
    """Truth and samples alike from N(m, 0.1^2) on [0, 1]: s is 0.1, and the error of the mean of K s sqrt(1 + 1/K)."""
    generator = torch.Generator().manual_seed(0)
    draws = 0.2 * torch.randn(5, 3, 64, 64, generator=generator)
    s, ratio = spread(outcomes(draws[:4]), draws[4])
    assert s == pytest.approx(0.1, rel=0.01) and ratio == pytest.approx(1, rel=0.02)
    overconfident = spread(outcomes(0.5 * draws[:4]), draws[4])[1]
    assert overconfident > 1.5
    std = standard_deviation(outcomes(draws[:4]))
    torch.testing.assert_close(std, (draws[:4] / 2 + 0.5).std(0))
    assert math.isnan(spread(outcomes(draws[:4]), None)[1])
    assert spread(outcomes(torch.zeros(2, 3, 4, 4)), torch.ones(3, 4, 4))[0] == 0


def test_saving_gives_the_deviation_of_the_samples_without_their_mean(tmp_path):
    run = RunDirectory(tmp_path, "blur", "ps", {})
    samples = torch.stack([torch.full((3, 8, 8), value) for value in (-0.2, 0.2)])
    run.save("a", torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), outcomes(samples), lambda *_: Scores(1.0, 1.0, 1.0))
    assert run.rows[-1].sample == MEAN and run.rows[-1].std == pytest.approx(math.sqrt(2) * 0.1, rel=1e-5)
    assert run.rows[-1].error_to_std == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("values", [torch.zeros(8, 8), torch.full((1, 1), 0.3), torch.full((8, 300), math.nan),
                                    torch.rand(200, 40)])
def test_maps_of_every_kind_can_be_drawn(tmp_path, values):
    save_map(tmp_path / "map.png", values, "title")
    with Image.open(tmp_path / "map.png") as image:
        assert min(image.size) > 200 and max(image.size) < 1300


def test_the_bar_of_a_map_begins_at_zero_and_the_map_is_monotonic(tmp_path):
    """A ramp from 0 to its top goes through the whole scale: dark on the left, bright on the right."""
    save_map(tmp_path / "map.png", torch.linspace(0, 0.4, 64).expand(64, 64), "title")
    with Image.open(tmp_path / "map.png") as image:
        grey = np.asarray(image.convert("L")).astype(int)
    row = grey[len(grey) // 2]
    inside = row[np.argmin(row):]
    inside = inside[:np.argmax(inside == 255)]                          # up to the white margin
    assert inside[0] < 10 and inside.max() > 200 and (np.diff(inside) >= 0).all()
