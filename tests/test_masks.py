"""The masks of inpainting: their statistics against the official code's, and masks from files."""

import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.measurements import Measurement, get_noise, get_operator
from tests.operator_cases import prepared
from util.errors import UserError
from util.seeding import ImageRandomness


def masks(options: dict, n: int, size: tuple[int, int] = (256, 256)) -> np.ndarray:
    operator = prepared("inpainting", {"mask_opt": options}, size, [f"{i}.png" for i in range(n)])
    return operator.mask[:, 0].numpy()


def boxes(hidden: np.ndarray) -> np.ndarray:
    """(n, 4): top, left, height, width of the rectangle that each (n, H, W) holds; fails if it is none."""
    found = []
    for image in hidden:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        top, left, h, w = rows[0], columns[0], len(rows), len(columns)
        assert image[top:top + h, left:left + w].all() and image.sum() == h * w
        found.append((top, left, h, w))
    return np.array(found)


@pytest.mark.parametrize("mask_type", ["box", "extreme"])
def test_box_statistics(golden, mask_type):
    drawn = masks({"mask_type": mask_type, "mask_len_range": [32, 128], "image_size": 256}, 300)
    found = boxes(drawn == (1 if mask_type == "extreme" else 0))
    expected = golden("operators")[f"maskstat_{mask_type}_top_left_h_w"]
    assert found[:, 2:].min() >= 32 and found[:, 2:].max() <= 127
    assert found[:, :2].min() >= 16 and (found[:, :2] + found[:, 2:]).max() < 256 - 16
    tolerance = 4 * expected.std(0) * np.sqrt(1 / 300 + 1 / 200)
    assert (np.abs(found.mean(0) - expected.mean(0)) < tolerance).all()
    assert (np.abs(found.std(0) / expected.std(0) - 1) < 0.25).all()


def test_random_mask_statistics(golden):
    hidden = (masks({"mask_type": "random", "mask_prob_range": [0.3, 0.7]}, 200) == 0).sum((1, 2))
    expected = golden("operators")["maskstat_random_zero_count"]
    assert hidden.min() >= int(0.3 * 65536) and hidden.max() < 0.7 * 65536
    assert abs(hidden.mean() - expected.mean()) < 4 * expected.std() * np.sqrt(2 / 200)
    assert abs(hidden.std() / expected.std() - 1) < 0.25


def test_equal_ends_exact_counts_and_tight_fits():
    assert (boxes(masks({"mask_type": "box", "mask_len_range": [40, 40]}, 5) == 0)[:, 2:] == 40).all()
    assert (boxes(masks({"mask_type": "box", "mask_len_range": [128, 129]}, 5) == 0)[:, 2:] == 128).all()
    tight = boxes(masks({"mask_type": "box", "mask_len_range": [8, 9], "margin": [4, 4]}, 3, (16, 16)) == 0)
    assert (tight == (4, 4, 8, 8)).all()
    small = boxes(masks({"mask_type": "box", "mask_len_range": [8, 13]}, 20, (32, 20)) == 0)
    assert small[:, 0].min() >= 10 and small[:, 1].min() >= 4           # the default margin of 16 has no room
    assert ((small[:, :2] + small[:, 2:]) <= (22, 16)).all()
    whole = boxes(masks({"mask_type": "box", "mask_len_range": [16, 16]}, 1, (16, 16)) == 0)
    assert (whole == (0, 0, 16, 16)).all()
    hidden = masks({"mask_type": "random", "mask_prob_range": [0.7, 0.7]}, 2, (20, 31)) == 0
    assert (hidden.sum((1, 2)) == int(620 * 0.7)).all()


def test_both_removes_box_and_pixels():
    both = masks({"mask_type": "both", "mask_len_range": [32, 33], "mask_prob_range": [0.5, 0.5]}, 4)
    for mask in both:
        windows = np.lib.stride_tricks.sliding_window_view(mask, (32, 32))[::4, ::4]
        assert windows[:, :, ::7, ::7].sum((2, 3)).min() == 0
        assert 0.40 < mask.mean() < 0.5


def test_mask_from_a_file(tmp_path):
    kept = np.zeros((12, 10), dtype=np.uint8)
    kept[2:5, 3:9] = 255
    for mode, file in (("L", "grey.png"), ("1", "bits.png"), ("RGB", "colour.png"), ("P", "palette.png"),
                       ("RGBA", "alpha.png")):
        Image.fromarray(kept).convert(mode).save(tmp_path / file)
        mask = masks({"mask_type": "file", "file": str(tmp_path / file)}, 2, (12, 10))
        np.testing.assert_array_equal(mask, np.broadcast_to(kept > 0, (2, 12, 10)))
    np.save(tmp_path / "mask.npy", kept > 0)
    mask = masks({"mask_type": "file", "file": str(tmp_path / "mask.npy")}, 1, (12, 10))[0]
    np.testing.assert_array_equal(mask, kept > 0)
    for wrong in (np.ones(5), np.full((12, 10), np.nan)):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(UserError, match="expected finite numbers of shape"):
            masks({"mask_type": "file", "file": str(tmp_path / "wrong.npy")}, 1, (12, 10))
    kept[3, 4] = 3                                                      # as JPEG leaves it
    Image.fromarray(kept).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match="3 values, from 0 to 255, expected 0 .* and one other"):
        masks({"mask_type": "file", "file": str(tmp_path / "grey.png")}, 2, (12, 10))


def test_a_mask_that_keeps_little_may_be_inverted(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("guided_diffusion.measurements.inpainting.logger.warning", warnings.append)
    mask = np.zeros((10, 10), np.uint8)
    mask[2] = 255
    for values in (mask, 255 - mask):
        Image.fromarray(values).save(tmp_path / "mask.png")
        masks({"mask_type": "file", "file": str(tmp_path / "mask.png")}, 1, (10, 10))
    line, = warnings
    assert "keeps 10.0% of the pixels, the white ones" in line and "if white is what is missing, invert it" in line


def test_mask_of_another_size(tmp_path):
    Image.new("L", (10, 12), 255).save(tmp_path / "grey.png")
    with pytest.raises(UserError, match="12x10"):
        masks({"mask_type": "file", "file": str(tmp_path / "grey.png")}, 2, (10, 12))


@pytest.mark.parametrize("content", [b"", b"no picture", Image.new("L", (4, 4)).tobytes()])
def test_unreadable_mask_files(tmp_path, content):
    file = tmp_path / "mask.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        masks({"mask_type": "file", "file": str(file)}, 1)
    Image.new("L", (4, 4)).save(file)
    with pytest.raises(UserError, match="black everywhere"):
        masks({"mask_type": "file", "file": str(file)}, 1)


def test_chi_square_counts_what_is_observed_alone():
    """The truth has 1 on average over the m observed entries, whatever share of the pixels they are."""
    mask = {"mask_type": "random", "mask_prob_range": [0.7, 0.7]}
    operator = get_operator("inpainting", observed_only=True, mask_opt=mask)
    x = torch.zeros(2, 3, 64, 64)
    measurement = Measurement.simulate(operator, get_noise("gaussian", sigma=0.1), x, ImageRandomness(0, ["a", "b"]))
    assert measurement.chi_square(x).tolist() == pytest.approx([1, 1], abs=0.1)        # 3686 entries: 0.023 off
