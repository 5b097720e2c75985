"""`python -m util.compute_metric`: two folders of images."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from tests.fake_weights import write_alexnet, write_inception, write_vgg16
from tests.forks import program
from tests.scored_images import image, noisy, read
from util.compute_metric import main
from util.img_utils import load_image, save_image
from util.metrics.perceptual import frechet_distance, kernel_distance
from util.metrics.scores import PER_IMAGE, psnr, ssim
from util.metrics.weights import ALEXNET, INCEPTION, VGG16

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def folders(tmp_path):
    """Four pairs: a, b, sub/c, d."""
    for k, name in enumerate(["a", "b", "sub/c", "d"]):
        save_image(tmp_path / "A" / f"{name}.png", noisy(image(k), 100 + k))
        save_image(tmp_path / "B" / f"{name}.png", image(k))
    return tmp_path / "A", tmp_path / "B"


def test_two_folders_are_scored_pair_by_pair(folders, tmp_path, capsys, tiny_inception):
    a, b = folders
    assert main([str(a), str(b), "--save_dir", str(tmp_path / "out")]) == 0
    summary, rows = read(tmp_path / "out")
    pairs = [(load_image(a / f"{name}.png"), load_image(b / f"{name}.png")) for name in ("a", "b", "d", "sub/c")]
    assert [row["image"] for row in rows] == ["a", "b", "d", "sub/c"]
    assert [float(row["psnr"]) for row in rows] == pytest.approx([psnr(*pair) for pair in pairs], rel=1e-5)
    assert [float(row["ssim"]) for row in rows] == pytest.approx([ssim(*pair) for pair in pairs], rel=1e-5)
    assert {row["lpips_vgg"] for row in rows} == {""}
    mean = np.mean([psnr(*pair) for pair in pairs])
    assert summary["metrics"]["psnr"]["mean"] == pytest.approx(mean)
    low, high = summary["metrics"]["psnr"]["ci95"]
    assert low < mean < high
    assert summary["metrics"]["lpips_alex"] == {"mean": None, "std": None, "count": 0, "ci95": None}
    features = [torch.stack([(x.double() + 1).mul(127.5).round().mean((1, 2)) for x in side])
                for side in zip(*pairs, strict=True)]
    assert summary["fid"]["value"] == pytest.approx(frechet_distance(features[1], features[0]), rel=1e-4)
    assert summary["kid"]["value"] == pytest.approx(kernel_distance(features[1], features[0]), rel=1e-4)
    assert (summary["fid"]["images"], summary["fid"]["reference_images"], summary["images"]) == (4, 4, 4)
    assert "Inception v3" in summary["fid"]["extractor"]
    out = capsys.readouterr().out
    assert f"PSNR (dB)       {mean:10.2f}   {low:.2f} to {high:.2f}" in out
    assert "4 against 4 images" in out


def test_equal_images_are_told_of(folders, capsys, tiny_inception):
    assert main([str(folders[0]), str(folders[0]), "--metrics", "psnr"]) == 0
    assert "4 of 4 pairs are equal: their PSNR is infinite" in capsys.readouterr().err


def test_nothing_is_written_beside_folders_of_images(folders, tmp_path, tiny_inception):
    before = sorted(tmp_path.rglob("*"))
    assert main([*map(str, folders)]) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_other_suffixes_pair_by_name(folders, tiny_inception):
    from PIL import Image

    a, b = folders
    Image.open(b / "a.png").save(b / "a.bmp")
    (b / "a.png").unlink()
    assert main([str(a), str(b)]) == 0


def test_names_that_differ_in_their_suffix_alone_stay_apart(folders, tmp_path, tiny_inception, capsys):
    from PIL import Image

    a, b = folders
    for folder in folders:
        Image.open(folder / "d.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "a.bmp")
    assert main([str(a), str(b), "--save_dir", str(tmp_path / "out")]) == 0
    assert [row["image"] for row in read(tmp_path / "out")[1]] == ["a.bmp", "a.png", "b", "d", "sub/c"]


def test_missing_images_are_named(folders, capsys, tiny_inception):
    a, b = folders
    (a / "b.png").unlink()
    (b / "d.png").unlink()
    assert main([str(a), str(b)]) == 1
    err = capsys.readouterr().err
    assert f"{a} has no 'b'" in err
    assert f"{b} has no 'd'" in err


def test_a_long_list_of_missing_images_is_cut(folders, capsys, tiny_inception):
    for k in range(12):
        save_image(folders[1] / f"x{k:02d}.png", image(k))
    assert main([*map(str, folders)]) == 1
    assert "'x00', 'x01', 'x02', 'x03', 'x04' and 7 more" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["size", "unreadable", "empty"])
def test_a_pair_that_cannot_be_scored_is_named_and_passed_over(folders, capsys, tmp_path, tiny_inception, damage):
    a, b = folders
    if damage == "size":
        save_image(a / "b.png", image(1, 20))
    else:
        (a / "b.png").write_bytes(b"" if damage == "empty" else (a / "b.png").read_bytes()[:150])
    assert main([str(a), str(b), "--save_dir", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert str(a / "b.png") in err
    assert "1 of 4 pairs could not be scored" in err
    if damage == "size":
        assert "20 x 20 and 24 x 24" in err
    summary, rows = read(tmp_path / "out")
    assert [row["image"] for row in rows] == ["a", "d", "sub/c"]
    assert (summary["skipped"], summary["metrics"]["psnr"]["count"], summary["fid"]["images"]) == (1, 3, 3)


def break_all(a, b):
    for file in a.rglob("*.png"):
        file.write_bytes(b"no image")


def rename_all(a, b):
    for file in [*a.rglob("*.png")]:
        file.rename(file.with_name(f"other_{file.name}"))


def empty(a, b):
    for file in [*b.rglob("*.png")]:
        file.rename(file.with_suffix(".txt"))


@pytest.mark.parametrize(("change", "arguments", "message"), [
    (break_all, ["A", "B"], "no image could be scored"),
    (rename_all, ["A", "B"], "no image in"),
    (empty, ["A", "B"], "holds no images"),
    (None, ["A", "C"], "not found"),
    (None, ["A", "B/a.png"], "is a file"),
    (None, ["A"], "no folders recon/ and label/"),
    (None, [], "required"),
    (None, ["A", "B", "--save-dir"], "did you mean '--save_dir'"),
    (None, ["A", "B", "--metrics", "psnr,sim"], "did you mean 'ssim'"),
    (None, ["A", "B", "--weights_dir", "W"], "expected one that holds vgg16-397923af.pth"),
    (None, ["A", "B", "--gpu", "99"], "--gpu 99"),
])
def test_a_mistake_ends_with_one_line_and_status_2(folders, monkeypatch, capsys, change, arguments, message):
    if change:
        change(*folders)
    monkeypatch.chdir(folders[0].parent)
    assert main([*arguments, *(["--metrics", "psnr"] if "--metrics" not in arguments else [])]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


def test_all_metrics_from_a_folder_of_weights(folders, tmp_path, capfd, monkeypatch):
    """The real loading code and the real networks, on small files of the published names and shapes."""
    monkeypatch.setattr("util.metrics.comparison.frechet_distance", lambda real, restored: float(real.shape[1]))
    for write, file in ((write_vgg16, VGG16), (write_alexnet, ALEXNET), (write_inception, INCEPTION)):
        (tmp_path / "weights").mkdir(exist_ok=True)
        write(tmp_path / "weights" / file.name)
    a, b = (tmp_path / f"{name}40" for name in "AB")
    for k in range(2):
        save_image(a / f"{k}.png", noisy(image(k, 40), k))
        save_image(b / f"{k}.png", image(k, 40))
    assert main([str(a), str(b), "--weights_dir", str(tmp_path / "weights"), "--save_dir", str(a)]) == 0
    assert "left out" not in capfd.readouterr().err
    summary, rows = read(a)
    assert all(math.isfinite(float(row[name])) for row in rows for name in PER_IMAGE)
    assert all(summary["metrics"][name]["ci95"] for name in PER_IMAGE)
    assert summary["fid"]["value"] == 2048
    assert math.isfinite(summary["kid"]["value"])


def test_without_weights_the_rest_is_there_and_the_reason_named_once(folders, fork):
    process = fork(program, find_spec("util.compute_metric").origin, *map(str, folders), "--weights_dir",
                   str(folders[0]))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err.count("left out") == len(err.strip().splitlines()) == 1
    assert "LPIPS (vgg), LPIPS (alex), FID and KID" in err
    lines = {line[:14].strip(): line[14:].split() for line in out.splitlines()}
    assert float(lines["PSNR (dB)"][0]) > 20
    assert lines["FID"] == ["-"]
    assert lines["LPIPS (vgg)"][0] == "-"
