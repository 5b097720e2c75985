"""Hostile inputs: whatever is in a folder, a file or a name, nothing is executed, and nothing outside is touched."""

import io
import os
import resource
import struct
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample_condition
from data.dataloader import ImageFolder, get_dataloader
from tests.command_line import arguments
from util import img_utils, safe_yaml
from util.arrays import read_array
from util.config import read_yaml
from util.errors import UserError, printable
from util.img_utils import load_image
from util.lock import FolderLock
from util.measurement_files import MeasurementFolder, read_measurement
from util.metrics_table import COLUMNS, Outcome, Row
from util.run_dir import RunDirectory
from util.safe_yaml import parse_yaml

NAMES = ["plain", "..", "...", "-rf", "--help", "a b", "<script>alert(1)<", "new\nline", "\x1b[2Jclear", "tab\t",
         "e\u0301", "日本語", "\u202egnp", "a" * 251, "ü" * 125, "😀" * 62, "%2e%2e%2f", "$(touch mark)",
         "`touch mark`", "'\"", "a\\..\\b", "CON", "nul.", " ", "\udcff", "a_0", "a_mean", "x.png"]


def picture(path: Path, seed: int = 0, side: int = 32) -> None:
    """A picture in a file of whatever name."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "png")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def png_header(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says that it has this size."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*") if not path.is_symlink()}


class Within:
    """Fails if its block takes longer than `seconds` or raises this process's peak memory by more than `mebibytes`."""

    def __init__(self, seconds: float, mebibytes: int):
        self.seconds, self.mebibytes = seconds, mebibytes

    def __enter__(self) -> None:
        self.memory, self.started = self.peak(), time.perf_counter()

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            assert time.perf_counter() - self.started < self.seconds
            assert self.peak() - self.memory < self.mebibytes * 1024

    @staticmethod
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def mark(tmp_path) -> Path:
    """A file that code of a hostile input would make."""
    return tmp_path / "mark"


# names

def test_names_of_images_are_single_unique_and_short(tmp_path):
    for i, name in enumerate(NAMES):
        picture(tmp_path / "data" / f"{name}.png", i)
    picture(tmp_path / "data" / "sub" / ".." / "sub" / "x.png")
    (tmp_path / "data" / ".png").write_bytes(b"")                   # hidden, so no image
    dataset = ImageFolder(str(tmp_path / "data"))
    assert len(dataset) == len(NAMES) + 1 - sum(name.startswith(".") for name in NAMES)
    assert len({name.casefold() for name in dataset.names}) == len(dataset)
    for name in dataset.names:
        assert Path(name).name == name and name.isprintable()
        assert len(f".{name}_mean.png.4194304.tmp".encode()) <= 255
        assert (tmp_path / "x" / f"{name}.png").resolve().parent == tmp_path / "x"


def test_a_run_with_hostile_names_stays_in_its_folder(run, workplace):
    for i, name in enumerate(["-rf", "new\nline\x1b[2J", "ü" * 125, "a\\..\\b", "<script>\u202e"]):
        picture(workplace / "in" / "data" / f"{name}.png", i)
    before = snapshot(workplace)
    status, out, err = run("--data", "in/data", "--num_samples", "2")
    assert status == 0, err
    after = snapshot(workplace)
    assert len([name for name in after if "/recon/" in name]) == 5 * 3
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} <= {"results", "torch"}
    assert not {c for c in out + err if not c.isprintable()} - {"\n", "\r"}


def test_an_unreadable_file_cannot_write_to_the_terminal(run, workplace):
    picture(workplace / "data" / "good.png")
    (workplace / "data" / "\x1b[2J\x07evil\nwarning: all is well.png").write_bytes(b"x")
    status, out, err = run("--data", "data")
    assert status == 1
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert "\\x1b[2J\\x07evil\\nwarning: all is well.png" in err


def test_printable_text_keeps_its_letters_and_loses_its_breaks():
    assert printable(Path("ä b/日本")) == "ä b/日本"
    assert printable("a\nb\r\x1b[0m\u2028\udcff") == "a\\nb\\r\\x1b[0m\\u2028\\udcff"


@pytest.mark.parametrize("image", ["../../../mine", "/etc/mine", "..", ".", "", "a/b", "a\\b", "\0"])
@pytest.mark.parametrize("column", ["image", "sample"])
def test_a_row_that_points_elsewhere_is_refused(image, column):
    cells = dict.fromkeys(COLUMNS, "1") | {"image": "a", "sample": "0", "status": "ok"}
    assert Row.parse(cells).image == "a"
    with pytest.raises(ValueError):
        Row.parse(cells | {column: image})


@pytest.mark.parametrize("name", ["a" * 200, "new\nline", "\x1b[2J"])
def test_measurements_with_impossible_names_are_refused(tmp_path, name):
    (tmp_path / f"{name}.npz").write_bytes(b"x")
    with pytest.raises(UserError, match="no name for results") as caught:
        MeasurementFolder(str(tmp_path))
    assert str(caught.value).isprintable()


# links

def test_links_in_the_data_are_read_and_left_alone(run, workplace):
    outside = workplace / "outside"
    picture(outside / "mine.png")
    picture(outside / "album" / "other.png")
    data = workplace / "data"
    data.mkdir()
    (data / "a.png").symlink_to(outside / "mine.png")
    (data / "gone.png").symlink_to(outside / "nothing.png")
    (data / "loop").symlink_to(data)
    (data / "loop.png").symlink_to("loop.png")
    (data / "zero.png").symlink_to("/dev/zero")
    before = snapshot(outside)
    status, _, err = run("--data", "data")
    assert status == 0, err
    assert [p.name for p in (workplace / "results/super_resolution/dpps/recon").iterdir()] == ["a.png"]
    assert run("--data", "data", "--overwrite")[0] == 0
    assert snapshot(outside) == before


def open_run(folder: Path, **options: bool) -> RunDirectory:
    return RunDirectory(folder, "inpainting", "dpps", {"seed": 0}, images=["a"], **options)


def save(directory: RunDirectory) -> None:
    x = torch.zeros(3, 16, 16)
    directory.begin("a")
    directory.save("a", None, x, [Outcome("0", x, 1.0, 1.0, 0.1, 1.0)], None)


LINKED = ("input", "recon", "label", "progress", "std", "measurements", "trajectories", "rows", "progress/a")


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_a_run_that_is_a_link_is_refused(tmp_path, name, overwrite):
    outside = tmp_path / "outside"
    for file in ("a.png", "a.npz", "a.csv", "x_0001.png", ".a.png.12.tmp"):
        picture(outside / file)
    place = tmp_path / "results/inpainting/dpps" / name
    save(open_run(tmp_path / "results"))
    if place.is_dir():
        place.rename(tmp_path / "moved")
    place.symlink_to(outside)
    before = snapshot(outside)
    with pytest.raises(UserError, match="symbolic link"):
        open_run(tmp_path / "results", overwrite=overwrite)
    assert snapshot(outside) == before


@pytest.mark.parametrize("name", ["metrics.csv", "config.yaml", "summary.json", "grid.png", "rows/a.csv", "recon/a.png",
                                  "input/a.png", "trajectories/a.csv"])
def test_a_file_of_a_run_that_is_a_link_is_replaced_and_not_followed(tmp_path, name):
    directory = open_run(tmp_path / "results")
    save(directory)
    directory.conclude({})
    place = directory.path / name
    outside = tmp_path / "mine"
    outside.write_bytes(place.read_bytes() if place.exists() else b"")
    place.unlink(missing_ok=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside)
    before = outside.read_bytes(), outside.stat().st_mtime_ns
    directory = open_run(tmp_path / "results")
    save(directory)
    directory.conclude({})
    open_run(tmp_path / "results", overwrite=True)
    assert (outside.read_bytes(), outside.stat().st_mtime_ns) == before


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    outside = tmp_path / "mine"
    outside.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(outside)
    with pytest.raises(UserError, match="cannot write to"), FolderLock(tmp_path / "run"):
        pass
    assert outside.read_text() == "mine"


# pictures

@pytest.mark.parametrize("size", [(60000, 60000), (20000, 20000), (2 ** 31 - 1, 1), (10000, 9000)])
@pytest.mark.parametrize("read", [load_image, img_utils.load_alpha, lambda path: read_array(str(path), "mask")])
def test_image_bombs_cost_nothing(tmp_path, size, read):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with Within(2, 64), pytest.raises(UserError, match=r"(?i)cannot .*read.*pixels"):
        read(tmp_path / "bomb.png")


def test_a_bomb_is_passed_over(run, workplace):
    (workplace / "data").mkdir()
    (workplace / "data" / "bomb.png").write_bytes(png_header(60000, 60000))
    picture(workplace / "data" / "good.png")
    status, _, err = run("--data", "data")
    assert status == 1
    assert "bomb.png" in err and "passed over" in err and "1 of 2 images could not be read" in err


def test_a_picture_with_less_data_than_it_says_is_refused(tmp_path):
    (tmp_path / "short.png").write_bytes(png_header(5000, 5000, bytes(1000)))
    with pytest.raises(UserError, match="cannot read image"):
        load_image(tmp_path / "short.png")


def test_compressed_text_in_a_picture_is_not_unpacked_without_end(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    packed = zlib.compress(bytes(100 * 2 ** 20), 9)
    png = png_header(4, 4, bytes(4 * 13))
    (tmp_path / "text.png").write_bytes(png[:33] + chunk(b"zTXt", b"a\0\0" + packed) + png[33:])
    with Within(5, 100):
        try:
            load_image(tmp_path / "text.png")
        except UserError as error:
            assert "cannot read image" in str(error)


def test_no_format_that_runs_other_programs_is_decoded(tmp_path, mark):
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({mark}) (w) file closefile showpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(postscript)
    for read in (load_image, lambda path: read_array(str(path), "kernel")):
        with pytest.raises(UserError, match="cannot"):
            read(tmp_path / "a.png")
    assert not mark.exists()


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2 ** 36)                                      # sparse: it takes no room
    with Within(2, 64), pytest.raises(UserError, match="more than .* bytes"):
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
    batches = list(get_dataloader(ImageFolder(str(tmp_path), image_size=16), 1, unreadable=refused.append))
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
    npy((1,), "<f4").replace(b"'shape'", b"'shap' "), npy((3,), "<U10", bytes(120)), npy((2,), "<c8", bytes(16))])
def test_arrays_that_lie_are_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with Within(2, 64), pytest.raises(UserError, match="cannot be read") as caught:
        read_array(str(tmp_path / "a.npy"), "kernel")
    assert len(str(caught.value).splitlines()) == 1


def archive(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def test_measurements_that_unpack_to_more_than_they_should_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("util.measurement_files.LARGEST_CONTENT", 10 ** 6)
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


# YAML

def laughs(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("text", [
    laughs(10), laughs(500, 2),
    "a: &a {x: 1}\n" + "\n".join(f"b{i}: &b{i} {{<<: [{', '.join(['*a' if i == 0 else f'*b{i - 1}'] * 9)}]}}"
                                 for i in range(10)),
    f"a: &a '{'x' * 200_000}'\nb: [{', '.join(['*a'] * 1000)}]", "a: &a [*a]", "a: &a {b: *a}", "&a {b: *a}",
    "[" * 20_000, "a: " + "{b: " * 20_000, "- " * 20_000, "? " * 5_000, "a: " + "[" * 60 + "]" * 60,
    "".join(f"a{i}: &a{i} {'[' * 30}{f'*a{i - 1}' if i else 1}{']' * 30}\n" for i in range(200)),
], ids=lambda text: text[:12])
def test_yaml_bombs_are_refused(tmp_path, text):
    (tmp_path / "bomb.yaml").write_text(text)
    with Within(20, 300), pytest.raises(UserError, match=r"bomb\.yaml, line \d+: ") as caught:
        read_yaml(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < 500


def test_long_files_are_refused_whatever_is_in_them(monkeypatch):
    monkeypatch.setattr(safe_yaml, "MOST_VALUES", 100)
    assert parse_yaml("[" + "1, " * 99 + "]") == [1] * 99
    for text in ("[" + "1, " * 100 + "]", "a: " + "x" * 10_000):
        with pytest.raises(ValueError, match="more than 100 values"):
            parse_yaml(text)


def test_aliases_within_reason_are_plain_yaml():
    assert parse_yaml(laughs(4))["a3"][8][8][8] == ["lol"] * 9
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}
    assert parse_yaml("[" * 40 + "]" * 40)


def test_a_large_file_is_no_configuration(tmp_path):
    (tmp_path / "large.yaml").write_bytes(b"a: 1\n" * (20 * 2 ** 20))        # 100 MB
    with Within(2, 64), pytest.raises(UserError, match="bytes, expected at most"):
        read_yaml(tmp_path / "large.yaml")


def test_a_bomb_on_the_command_line_or_in_results_is_refused(prior, workplace, capsys):
    text = "{" + laughs(10).strip().replace("\n", ", ") + "}"
    assert sample_condition.main(arguments(prior, "--set", f"conditioning.params={text}")) == 2
    assert len(capsys.readouterr().err) < 3000
    assert sample_condition.main(arguments(prior)) == 0
    capsys.readouterr()
    (workplace / "results/super_resolution/dpps/config.yaml").write_text(laughs(10))
    assert sample_condition.main(arguments(prior)) == 2
    assert "is no configuration of ours" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--model_config", "--diffusion_config", "--task_config"])
def test_no_configuration_runs_code(workplace, option, capsys, mark):
    Path("evil.yaml").write_text(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path "
                                 f"['{mark}']]\n")
    assert sample_condition.main([option, "evil.yaml"]) == 2
    assert "refused" in capsys.readouterr().err
    assert not mark.exists()


def test_a_checkpoint_with_code_ends_the_command_and_runs_nothing(prior, workplace, capsys, mark):
    class Trap:
        def __reduce__(self):
            return Path.touch, (mark,)

    torch.save({"weight": Trap()}, workplace / "evil.pt")
    assert sample_condition.main(arguments(prior, "--set", "model.model_path=evil.pt")) == 2
    err = capsys.readouterr().err
    assert "was refused and nothing in it was run" in err and "Traceback" not in err
    assert not mark.exists()


def test_the_sources_have_no_unsafe_reader():
    root = Path(sample_condition.__file__).parent
    packages = ("util", "data", "guided_diffusion")
    for file in (root / "sample_condition.py", *(f for p in packages for f in (root / p).rglob("*.py"))):
        text = file.read_text(encoding="utf-8")
        for unsafe in ("yaml.unsafe_load", "yaml.full_load", "FullLoader", "weights_only=False", "allow_pickle=True",
                       "pickle.load", "shell=True", "os.system"):
            assert unsafe not in text, f"{file.name}: {unsafe}"
        assert text.count("torch.load(") == text.count("weights_only=True)"), file.name
        assert text.count("np.load(") == text.count("allow_pickle=False)"), file.name


def test_results_with_tags_are_not_constructed(tmp_path, mark):
    directory = open_run(tmp_path)
    save(directory)
    text = f"!!python/object/apply:pathlib.Path.touch ['{mark}']\n"
    (directory.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="no configuration of ours"):
        open_run(tmp_path)
    assert not mark.exists()
