"""`python -m util.reproduce_table` on a small table, with a network for images of 16 x 16."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from guided_diffusion.unet import create_model
from util.reproduce_table import __main__ as reproduce_table

MODEL = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "learn_sigma": True,
         "attention_resolutions": "", "num_heads": 1, "use_scale_shift_norm": True}
TASK = {"conditioning": {"method": "ps", "params": {"scale": 1.0}}, "data": {"name": "skimage"},
        "measurement": {"operator": {"name": "super_resolution", "scale_factor": 4},
                        "noise": {"name": "gaussian", "sigma": 0.05}}}


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    torch.save(create_model(**MODEL).state_dict(), folder / "tiny.pt")
    (folder / "model.yaml").write_text(yaml.safe_dump({**MODEL, "model_path": str(folder / "tiny.pt")}))
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    return folder


@pytest.fixture
def tree(prior, workplace) -> dict:
    """The content of a small table; the working directory is empty and there is neither GPU nor network."""
    config = str(prior / "task.yaml")
    return {
        "title": "Tiny", "note": "A note.", "metrics": ["psnr", "ssim"], "data": "skimage",
        "model_config": str(prior / "model.yaml"), "diffusion_config": "configs/demo_diffusion_config.yaml",
        "set": ["diffusion.timestep_respacing=2"],
        "tasks": {"sr": {"title": "SR", "config": config},
                  "noise": {"title": "Denoising", "config": config, "set": ["measurement.operator={name: noise}"]}},
        "methods": {"dps": {"title": "DPS", "method": "ps"},
                    "free": {"title": "Free", "method": "vanilla", "params": {}, "tasks": ["sr"]},
                    "other": {"title": "Other"}},
        "paper": [{"source": "P, Table 9", "tasks": ["sr"], "metrics": ["psnr", "ssim"],
                   "rows": {"dps": {"row": "Ours", "values": [99.0, None]},
                            "other": {"row": "O", "values": [1.5, 0.2]}}}],
    }


@pytest.fixture
def run(tree, capsys, monkeypatch):
    """run(*arguments) -> (exit status, standard output, standard error) of the command on the small table, which nobody
    draws."""
    monkeypatch.setattr(reproduce_table, "draw", lambda table, entries: b"a picture")

    def run(*more: str) -> tuple[int, str, str]:
        Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        status = reproduce_table.main(["tiny.yaml", *more])
        return status, *capsys.readouterr()
    return run


def read_csv(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
