"""Hostile names and links: nothing outside the own folders is touched, and nothing is written to the terminal."""

from pathlib import Path

import pytest

from data.dataloader import ImageFolder
from tests.helpers import picture
from tests.hostile import open_run, save
from util.errors import UserError, printable
from util.run.lock import locked
from util.run.measurements import MeasurementFolder
from util.run.table import COLUMNS, Row

NAMES = ["plain", "..", "...", "-rf", "--help", "a b", "<script>alert(1)<", "new\nline", "\x1b[2Jclear", "tab\t",
         "e\u0301", "日本語", "\u202egnp", "a" * 251, "ü" * 125, "😀" * 62, "%2e%2e%2f", "$(touch mark)",
         "`touch mark`", "'\"", "a\\..\\b", "CON", "nul.", " ", "\udcff", "a_0", "a_mean", "x.png"]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*") if not path.is_symlink()}


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
    assert len([name for name in after if "/recon/" in name and name.endswith(".png")]) == 5 * 3
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
    cells = dict.fromkeys(COLUMNS, "1") | {"image": "a", "sample": "0", "status": "ok", "source": ""}
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
    assert status == 1 and "gone.png: No such file" in err and "loop.png: Too many levels of symbolic links" in err
    assert [p.name for p in (workplace / "results/super_resolution/dpps/recon").iterdir()] == ["a.png"]
    assert run("--data", "data", "--overwrite")[0] == 1
    assert snapshot(outside) == before


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
    with locked(tmp_path / "run"):
        assert not (tmp_path / "run" / "run.lock").is_symlink()
    (tmp_path / "run" / ".run.lock").symlink_to(outside)
    with pytest.raises(UserError, match="cannot write to"), locked(tmp_path / "run"):
        pass
    assert outside.read_text() == "mine"
