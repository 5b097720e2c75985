"""A tiny training: photographs, and the command on a tiny network."""

import pytest
import torch
import yaml

from guided_diffusion import train as program
from tests.training.tiny import MODEL
from util.img_utils import save_image


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    for k in range(3):
        ramp = torch.linspace(-1, 1, 40 + 8 * k).expand(3, 32, -1) * torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1)
        save_image(folder / f"{k}.png", ramp)
    return folder


@pytest.fixture
def train(tmp_path, photographs, monkeypatch):
    """train(out, phases, **settings) -> exit status of the command on a tiny network, whose curve nobody draws."""
    monkeypatch.setattr(program, "plot_losses", lambda history: b"a curve")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(MODEL))

    def run(out, phases, **settings):
        config = dict(model_config=str(tmp_path / "model.yaml"), phases=phases, precision="fp32", warmup_steps=2,
                      ema_decay=0.9, learning_rate=1e-3, save_every=100)
        (tmp_path / "train.yaml").write_text(yaml.safe_dump({**config, **settings}))
        return program.main(["--data", str(photographs), "--config", str(tmp_path / "train.yaml"), "--out", str(out)])
    return run
