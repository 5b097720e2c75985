"""Image files of every kind that users have, and the fixed map between [-1, 1] and 8 bits."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.png_files import png_16_bit
from util import img_utils
from util.errors import UserError
from util.img_utils import (
    central_square,
    from_uint8,
    load_image,
    save_grid,
    save_image,
    to_uint8,
    to_unit,
    write_atomically,
)

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)


def test_the_map_is_fixed_and_inverts():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    x = from_uint8(every)
    assert x.shape == (3, 16, 16) and x.dtype == torch.float32
    assert (float(x.min()), float(x.max())) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(x), every)
    flat = torch.full((3, 4, 4), 0.1)                                   # a min-max stretch would change this
    assert (to_uint8(flat) == 140).all()


def test_values_outside_the_range_are_clamped_and_nan_is_black():
    x = torch.tensor([-5.0, 5.0, float("nan"), float("inf"), -float("inf")]).expand(3, 1, 5)
    assert to_uint8(x)[0, :, 0].tolist() == [0, 255, 0, 255, 0]
    assert float(to_unit(torch.tensor(-3.0))) == 0


def test_saved_images_come_back(tmp_path):
    x = torch.rand(3, 7, 9) * 2 - 1
    before = x.clone()
    save_image(tmp_path / "a.png", x)
    assert torch.equal(x, before)
    assert float((load_image(tmp_path / "a.png") - x).abs().max()) <= 1 / 255 + 1e-6
    assert [f.name for f in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("mode, suffix", [
    ("RGB", "png"), ("RGB", "bmp"), ("RGB", "tif"), ("RGBA", "png"), ("RGBA", "webp"), ("L", "png"), ("LA", "png"),
    ("1", "png"), ("P", "png"), ("CMYK", "tif"), ("L", "jpg"), ("CMYK", "jpg"), ("YCbCr", "jpg"),
])
def test_every_mode_becomes_rgb(tmp_path, mode, suffix):
    image = Image.fromarray(LEVELS).convert(mode)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    image.save(tmp_path / f"a.{suffix}", **options)
    x = load_image(tmp_path / f"a.{suffix}")
    assert x.shape == (3, 6, 10) and x.dtype == torch.float32
    if suffix != "jpg":
        np.testing.assert_array_equal(to_uint8(x), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped_and_not_blended(tmp_path):
    image = Image.fromarray(LEVELS).convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(to_uint8(load_image(tmp_path / "a.png")), LEVELS)


def test_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    image = Image.fromarray(LEVELS).convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(to_uint8(load_image(tmp_path / "a.png")), np.asarray(image.convert("RGB")))
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_16_bit_images_keep_their_depth(tmp_path, suffix):
    levels = np.array([[0, 1, 257], [32768, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    x = load_image(tmp_path / f"a.{suffix}")
    expected = torch.from_numpy(levels.astype(np.float64) / 65535 * 2 - 1).float()
    torch.testing.assert_close(x, expected.expand(3, 2, 3), rtol=0, atol=2e-7)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_16_bit_images_keep_their_depth(tmp_path, channels):
    levels = np.random.default_rng(1).integers(0, 65536, (5, 8, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_16_bit(levels))
    expected = torch.from_numpy(levels[..., :3].astype(np.float64) / 65535 * 2 - 1).float().permute(2, 0, 1)
    torch.testing.assert_close(load_image(tmp_path / "a.png"), expected, rtol=0, atol=2e-7)
    torch.testing.assert_close(load_image(tmp_path / "a.png", 5), expected[:, :, 1:6], rtol=0, atol=2e-7)


@pytest.mark.parametrize("colours", [dict(photometric="rgb"), dict(photometric="rgb", planarconfig="separate"),
                                     dict(photometric="separated")])
def test_16_bit_colours_of_tiff_are_refused(tmp_path, colours):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4, 4), np.uint16), **colours)
    with pytest.raises(UserError, match="16-bit colours are read from PNG files, not from TIFF; save it as PNG"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_whose_zero_is_white_is_inverted(tmp_path, kind):
    top = np.iinfo(kind).max
    levels = np.array([[0, 1, top // 3], [top // 2, top - 1, top]], dtype=kind)
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="miniswhite")
    expected = torch.from_numpy(1 - levels.astype(np.float64) / top * 2).float()
    torch.testing.assert_close(load_image(tmp_path / "a.tif"), expected.expand(3, 2, 3), rtol=0, atol=2e-7)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(LEVELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    turned = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
              5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
              7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}[orientation](LEVELS)
    np.testing.assert_array_equal(to_uint8(load_image(tmp_path / "a.png")), turned)


@pytest.mark.parametrize("height, width", [(6, 10), (10, 6), (7, 10), (10, 7)])
def test_images_are_cropped_to_their_centre(tmp_path, height, width):
    levels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    x = load_image(tmp_path / "a.png", side)
    np.testing.assert_array_equal(to_uint8(x), levels[top:top + side, left:left + side])


@pytest.mark.parametrize("side", [1, 2, 31, 64, 65, 700])
def test_images_of_any_size_are_resized(tmp_path, side):
    Image.new("RGB", (side, side), (10, 200, 77)).save(tmp_path / "a.png")
    x = load_image(tmp_path / "a.png", 64)
    assert x.shape == (3, 64, 64)
    np.testing.assert_array_equal(to_uint8(x), np.broadcast_to([10, 200, 77], (64, 64, 3)))


def test_reduction_is_antialiased():
    stripes = torch.ones(3, 256, 256)
    stripes[:, :, ::2] = -1
    assert float(central_square(stripes, 64).abs().max()) < 0.1
    assert float(central_square(torch.rand(3, 8, 8).round() * 2 - 1, 64).abs().max()) <= 1


def damaged_files() -> dict[str, bytes]:
    def encoded(kind: str) -> bytes:
        import io
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, kind)
        return buffer.getvalue()

    png, jpeg = encoded("png"), encoded("jpeg")
    deep = png_16_bit(np.random.default_rng(4).integers(0, 65536, (32, 32, 3), dtype=np.uint16))
    return {"empty.png": b"", "text.png": b"this is no picture\n", "half.png": png[:len(png) // 2],
            "half.jpg": jpeg[:len(jpeg) // 2], "head.png": png[:20], "signature.png": png[:8],
            "garbled.png": png[:100] + bytes(50) + png[150:], "half16.png": deep[:len(deep) // 2],
            "half.tif": encoded("tiff")[:2000], "half.webp": encoded("webp")[:200], "half.bmp": encoded("bmp")[:500]}


@pytest.mark.parametrize("name", damaged_files())
def test_damaged_files_are_named_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(damaged_files()[name])
    with pytest.raises(UserError, match=f"cannot read image .*{name}: ") as caught:
        load_image(tmp_path / name, 32)
    assert len(str(caught.value).splitlines()) == 1


def test_missing_files_folders_and_unclear_ranges_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read image .*No such file"):
        load_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="cannot read image"):
        load_image(tmp_path)
    for shape, colours, words in (((4, 4), "minisblack", "floating-point images have no known value range; save it"),
                                  ((4, 5, 3), "rgb", "no image of 8 or 16 bits")):
        tifffile.imwrite(tmp_path / "f.tif", np.ones(shape, np.float32), photometric=colours)
        with pytest.raises(UserError, match=words):
            load_image(tmp_path / "f.tif")
    for levels in (np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int16)):
        tifffile.imwrite(tmp_path / "i.tif", levels)
        with pytest.raises(UserError, match="whole numbers outside 0 to 65535 have no known value range"):
            load_image(tmp_path / "i.tif")


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    Image.new("1", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    with pytest.raises(UserError, match="cannot read image .*pixels"):
        load_image(tmp_path / "a.png")


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / "new" / "a.txt", b"one")
    def full(*_):
        raise OSError(28, "No space left on device")

    for owner, step in ((os, "fsync"), (Path, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, full)
            with pytest.raises(UserError, match=r"cannot write .*a.txt: No space left on device"):
                write_atomically(tmp_path / "new" / "a.txt", b"two")
        assert (tmp_path / "new" / "a.txt").read_bytes() == b"one"
        assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.txt"]
    with pytest.raises(UserError, match="cannot write"):
        write_atomically(tmp_path / "new" / "a.txt" / "b.txt", b"three")


def test_grid_has_a_cell_for_each_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(img_utils, "GRID_CELL", 256)
    colours = [[-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]]
    rows = [[torch.full((3, 32, 32), c) for c in row] for row in colours]
    captions = [["a name that is far too long for its cell " * 3, "b", "c"]] * 2
    save_grid(tmp_path / "grid.png", rows, captions, ["x", "y", "z"])
    picture = np.asarray(Image.open(Path(tmp_path / "grid.png")))
    assert picture.shape[1] == 3 * 256 + 4 * 12
    middle = [picture[12 + 30 + i * 286 + 128, 12 + j * 268 + 128, 0] for i in range(2) for j in range(3)]
    assert middle == [0, 128, 255, 255, 0, 128]
    assert (picture[:, :12] == 255).all() and (picture[:, -12:] == 255).all()


def test_the_first_frame_is_read_and_that_is_said_once(tmp_path, capsys):
    frames = [Image.fromarray(LEVELS), Image.fromarray(255 - LEVELS)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    for _ in range(2):
        np.testing.assert_array_equal(to_uint8(load_image(tmp_path / "a.webp")), LEVELS)
    assert capsys.readouterr().err.count("a.webp has 2 frames or pages: the first is read") == 1
