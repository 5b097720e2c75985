"""Training of a prior: where it starts, how its batches go through the network, who may write to its folder."""


import numpy as np
import pytest
import torch

from data.random_crops import RandomCrops
from guided_diffusion.train import main
from guided_diffusion.training.config import TrainConfig
from guided_diffusion.unet import create_model
from tests.training.tiny import MODEL, PHASES
from util.config.config import REPOSITORY
from util.run.lock import locked


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    state = {name: torch.randn_like(tensor) * 0.1 for name, tensor in create_model(**MODEL).state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_init_begins_with_given_weights(tmp_path, train, photographs, weights):
    """A step of a rate of 1e-12 leaves them where they were; their average, too."""
    assert train(tmp_path / "random", PHASES[:1], learning_rate=1e-12) == 0
    words = ["--data", str(photographs), "--config", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--init", str(weights)]) == 0
    given, random, left = (torch.load(path, weights_only=True) for path in
                           (weights, tmp_path / "random" / "ema.pt", tmp_path / "out" / "ema.pt"))
    assert all(torch.allclose(left[name].float(), given[name], atol=1e-3) for name in given)
    assert not all(torch.allclose(random[name].float(), given[name], atol=1e-3) for name in given)


def test_a_run_that_is_continued_does_not_begin_again(tmp_path, train, photographs, weights):
    assert train(tmp_path / "out", PHASES) == 0
    before = (tmp_path / "out" / "ema.pt").read_bytes()
    words = ["--data", str(photographs), "--config", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--init", str(weights)]) == 0
    assert (tmp_path / "out" / "ema.pt").read_bytes() == before


def test_init_of_another_network_is_refused(tmp_path, train, photographs, capsys):
    torch.save(create_model(**{**MODEL, "channel_mult": "1,2"}).state_dict(), tmp_path / "other.pt")
    assert train(tmp_path / "tiny", PHASES[:1]) == 0                        # writes the training file
    words = ["--data", str(photographs), "--config", str(tmp_path / "train.yaml"), "--out", str(tmp_path / "out")]
    for name, message in (("other.pt", "does not fit the model config"), ("none.pt", "none.pt not found")):
        assert main([*words, "--init", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_two_trainings_do_not_share_a_folder(tmp_path, train, capsys):
    with locked(tmp_path / "out"):
        assert train(tmp_path / "out", PHASES) == 2
    error = capsys.readouterr().err
    assert "another run is at work" in error and "choose another folder with --out" in error
    assert not list((tmp_path / "out").iterdir())
    assert train(tmp_path / "out", PHASES) == 0


def test_parts_of_a_batch_make_the_step_of_the_whole(tmp_path, train):
    phases, losses = [dict(crop=8, batch_size=4, steps=3)], []
    for micro_batch in (0, 1, 3):                   # 0: the whole; of 3 the last part is smaller
        assert train(tmp_path / str(micro_batch), phases, micro_batch=micro_batch) == 0
        losses.append(np.genfromtxt(tmp_path / str(micro_batch) / "loss.csv", delimiter=",", names=True))
    for column in ("loss", "eps_mse"):
        for parts in losses[1:]:
            assert parts[column] == pytest.approx(losses[0][column], rel=1e-3)


def test_aligned_photographs_are_shown_by_zooms(tmp_path, train, monkeypatch):
    shown, read = [], RandomCrops.__getitem__

    def remember(self, number):
        shown.append((self.zooms, self.colour_jitter))
        return read(self, number)

    monkeypatch.setattr(RandomCrops, "__getitem__", remember)
    assert train(tmp_path / "out", PHASES, zooms=[1.0, 1.1], colour_jitter=0.1, loss_weight="min_snr") == 0
    assert set(map(str, shown)) == {"([1.0, 1.1], 0.1)"}


def test_a_state_from_before_an_option_was_there_is_continued(tmp_path, train, capsys):
    assert train(tmp_path / "out", PHASES[:1]) == 0
    path = tmp_path / "out" / "state.pt"
    state = torch.load(path, weights_only=True)
    for key in ("zooms", "colour_jitter", "loss_weight"):
        del state["config"][key]
    torch.save(state, path)
    assert train(tmp_path / "out", PHASES, loss_weight="p2") == 2
    assert "loss_weight: none -> p2" in capsys.readouterr().err
    assert train(tmp_path / "out", PHASES) == 0


def test_the_bar_goes_by_pixels_as_larger_crops_take_longer(tmp_path, train, capfd):
    assert train(tmp_path / "out", [dict(crop=8, batch_size=2, steps=6), dict(crop=16, batch_size=2, steps=3)]) == 0
    said = capfd.readouterr().err
    assert "/2.30k [" in said and "step 9, crop 16" in said                # 6 x 2 x 64 + 3 x 2 x 256 = 2304


def test_help_says_how_to_go_on(capfd):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capfd.readouterr().out.split())
    assert "The same command continues a training that was interrupted" in said and "torchrun --nproc_per_node" in said


def test_every_key_of_the_training_file_is_explained():
    text = (REPOSITORY / "docs" / "training.md").read_text()
    assert [key for key in TrainConfig.__dataclass_fields__ if f"`{key}`" not in text] == []
