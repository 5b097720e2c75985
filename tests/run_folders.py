"""RunDirectory on images of 8 x 8: a run to open, an image to save, the rows it leaves."""

import csv
import math

import torch

from util.metrics.scores import Scores
from util.run.directory import Outcome, RunDirectory

CONFIG = {"model": {"image_size": 8, "channel_mult": [1, 2]},
          "conditioning": {"method": "ps", "params": {"scale": 0.3}}, "seed": 0}


def fake_metrics(restored, label):
    """The mean in place of a score, so that rows can be told apart."""
    return Scores(float(restored.mean()), 0.5, math.nan)


def outcome(sample="0", value=0.25):
    return Outcome(sample, torch.full((3, 8, 8), value), distance=2.0, chi_square=math.nan, seconds=1.5,
                   network_evaluations=10)


def save(run, image="a", outcomes=None):
    run.save(image, torch.zeros(3, 8, 8), torch.full((3, 8, 8), -0.5), outcomes or [outcome()], fake_metrics)


def open_run(path, config=CONFIG, **options):
    return RunDirectory(path, "blur", "ps", config, **options)


def read_rows(run):
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))
