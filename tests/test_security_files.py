"""Hostile pictures, arrays and measurements: what lies about its size or is something else is refused at no cost."""

import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from data.dataloader import ImageFolder, make_batches, read_images
from tests.helpers import picture
from tests.hostile import FORGET_PEAK, Within
from tests.png_files import chunk, png
from util import img_utils
from util.arrays import read_array
from util.errors import UserError
from util.img_utils import load_image
from util.run.measurements import read_measurement


@pytest.mark.skipif(not os.access(FORGET_PEAK, os.W_OK), reason="the peak of memory cannot be set back here")
def test_a_limit_holds_after_a_higher_peak_too():
    np.ones(20 * 2 ** 20)                                           # 160 MiB, given back at once
    with Within(60, 64):
        np.ones(2 ** 20)
    with pytest.raises(AssertionError), Within(60, 64):
        np.ones(12 * 2 ** 20)


# pictures

@pytest.mark.parametrize("size", [(60000, 60000), (20000, 20000), (2 ** 31 - 1, 1), (10000, 9000)])
@pytest.mark.parametrize("read", [load_image, img_utils.load_alpha, lambda path: read_array(str(path), "mask")])
def test_image_bombs_cost_nothing(tmp_path, size, read):
    (tmp_path / "bomb.png").write_bytes(png(*size, rows=b""))
    with Within(2, 64), pytest.raises(UserError, match=r"(?i)cannot .*read.*pixels"):
        read(tmp_path / "bomb.png")


def test_a_bomb_is_passed_over(run, workplace):
    (workplace / "data").mkdir()
    (workplace / "data" / "bomb.png").write_bytes(png(60000, 60000, rows=b""))
    picture(workplace / "data" / "good.png")
    status, _, err = run("--data", "data")
    assert status == 1
    assert "bomb.png" in err and "passed over" in err and "1 of 2 images could not be read" in err


def test_a_picture_with_less_data_than_it_says_is_refused(tmp_path):
    (tmp_path / "short.png").write_bytes(png(5000, 5000, rows=bytes(1000)))
    with pytest.raises(UserError, match="cannot read image"):
        load_image(tmp_path / "short.png")


def test_compressed_text_in_a_picture_is_not_unpacked_without_end(tmp_path):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 * 2 ** 20), 9))
    (tmp_path / "text.png").write_bytes(png(4, 4, bytes(4 * 13), more=text))
    with Within(5, 100):
        try:
            load_image(tmp_path / "text.png")
        except UserError as error:
            assert "cannot read image" in str(error)


def test_files_that_are_too_large_are_not_read(tmp_path):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2 ** 36)                                      # sparse: it takes no room
    with Within(2, 64), pytest.raises(UserError, match="large.png: no image of 8 or 16 bits, or a damaged one"):
        load_image(tmp_path / "large.png")


def test_things_that_are_no_files_are_no_images(tmp_path):
    picture(tmp_path / "data" / "x.png" / "inside.png")             # a folder that is named like a picture
    os.mkfifo(tmp_path / "data" / "fifo.png")
    dataset = ImageFolder(str(tmp_path / "data"))
    assert list(dataset.names) == ["x_png__inside"] or list(dataset.names) == ["x.png__inside"]
    with pytest.raises(UserError, match="not found"):
        ImageFolder(str(tmp_path / "data" / "fifo.png"))


def test_content_that_is_no_image_is_passed_over(tmp_path):
    contents = {"html.png": b"<html>", "zip.jpg": b"PK\x03\x04", "zero.bmp": bytes(100), "script.webp": b"#!/bin/sh\n",
                "tiff.tif": b"II*\0" + b"\xff" * 50, "gif.png": b"GIF89a" + bytes(20), "none.png": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    picture(tmp_path / "good.png")
    refused: list[UserError] = []
    dataset = ImageFolder(str(tmp_path), image_size=16)
    batches = list(make_batches(read_images(dataset, range(len(dataset)), refused.append), 1))
    assert [batch.names for batch in batches] == [["good"]]
    assert len(refused) == len(contents)
    assert all(str(error).startswith("cannot read image") and str(error).isprintable() for error in refused)


# arrays and measurements

def npy(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"") -> bytes:
    """A .npy file that says that it has this shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content


@pytest.mark.parametrize("content", [
    npy((10 ** 13,)), npy((10 ** 6, 10 ** 6)), npy((4,)), npy((2,), "|O"), npy((-1,)), b"\x93NUMPY", b"",
    b"1 2 3\n0 1 0\n", npy((1,), "<f4").replace(b"'shape'", b"'shap' "), npy((3,), "<U10", bytes(120)),
    npy((2,), "<c8", bytes(16))])
def test_arrays_that_lie_are_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with Within(2, 64), pytest.raises(UserError, match="cannot be read") as caught:
        read_array(str(tmp_path / "a.npy"), "kernel")
    assert len(str(caught.value).splitlines()) == 1 and "unsafe" not in str(caught.value)


def archive(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def test_measurements_that_unpack_to_more_than_they_should_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("util.run.measurements.LARGEST_CONTENT", 10 ** 6)
    archive(tmp_path / "a.npz", y=npy((2 * 10 ** 6,), content=bytes(8 * 10 ** 6)))
    with Within(2, 32), pytest.raises(UserError, match="unpacks to more than"):
        read_measurement(tmp_path / "a.npz")


@pytest.mark.parametrize("y", [npy((10 ** 13,)), npy((2,), "|O"), npy((5,)), b"", b"pickle"])
def test_measurements_that_lie_are_refused(tmp_path, y):
    archive(tmp_path / "a.npz", y=y, image_shape=npy((3,), "<i8", struct.pack("<3q", 3, 4, 4)))
    with Within(2, 64), pytest.raises(UserError, match="a.npz"):
        read_measurement(tmp_path / "a.npz")


def test_measurements_with_deep_settings_are_refused(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    np.savez(tmp_path / "a.npz", y=np.zeros(3, np.float32), image_shape=np.array([3, 1, 1]), operator=deep, noise="{}",
             seed=0, observed=False)
    with pytest.raises(UserError, match="cannot be read"):
        read_measurement(tmp_path / "a.npz")
