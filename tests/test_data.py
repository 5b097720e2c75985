"""Datasets: which files are images, what they are called, and how they come in batches."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataloader import DATASETS, LISTS, get_dataset, make_batches, read_images, read_list, unique_names
from tests.command_line import rows
from tests.helpers import picture
from util.errors import UserError
from util.img_utils import from_uint8


def save(path, value=0, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "b.png", 2)
    save(tmp_path / "a.JPG", 1)
    save(tmp_path / "sub" / "deep" / "b.png", 3)
    save(tmp_path / "c.tif", 4)
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".thumbs" / "x.png")
    (tmp_path / "readme.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["folder", "ffhq", "imagenet"])
def test_folders_are_read_in_order_and_below(folder, name):
    dataset = get_dataset(name, image_size=8, root=str(folder))
    assert dataset.names == ("a", "b", "c", "sub__deep__b")
    assert len(dataset) == 4
    torch.testing.assert_close(dataset[1], from_uint8(np.full((8, 8, 3), 2, np.uint8)))
    torch.testing.assert_close(dataset[3], from_uint8(np.full((8, 8, 3), 3, np.uint8)))


def test_one_file_is_a_folder_of_one(folder):
    assert get_dataset("folder", root=str(folder / "b.png")).names == ("b",)


def test_an_image_keeps_its_size_unless_one_is_asked_for(tmp_path):
    save(tmp_path / "a.png", 9, (20, 12))
    assert get_dataset("folder", root=str(tmp_path))[0].shape == (3, 12, 20)
    assert get_dataset("folder", image_size=16, root=str(tmp_path))[0].shape == (3, 16, 16)


@pytest.mark.parametrize("paths, names", [
    (["a.png", "a.jpg", "b.png"], ["a_png", "a_jpg", "b"]),
    (["sub/a.png", "a.png"], ["sub__a", "a"]),
    (["A.png", "a.png"], None),                                         # one file on some systems
    (["sub__a.png", "sub/a.png"], None),
    (["a.png", "a.jpg", "a_png.bmp"], None),
    (["a b.v2.png", "ä.png", "q?*:\n.png"], ["a b.v2", "ä", "q____"]),
    (["x" * 250 + ".png", "x" * 249 + "y.png"], None),
    (["a\udcff.png"], ["a_"]),
])
def test_names_are_unique_and_fit_for_files(tmp_path, paths, names):
    found = unique_names([Path(p) for p in paths])
    assert names is None or found == names
    assert len({name.casefold() for name in found}) == len(paths)
    for name in found:
        assert len(name.encode()) <= 180
        (tmp_path / f"{name}_mean.png").touch()


def test_a_name_does_not_depend_on_its_neighbours(folder):
    before = get_dataset("folder", root=str(folder)).names
    save(folder / "another.png")
    assert set(before) < set(get_dataset("folder", root=str(folder)).names)


def test_a_missing_or_empty_folder_is_named_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"nowhere' not found; .*png.*--data skimage"):
        get_dataset("folder", root=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="'' not found"):
        get_dataset("folder", root="")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(UserError, match=r"readme.txt is no image file; .*png"):
        get_dataset("folder", root=str(tmp_path / "readme.txt"))
    with pytest.raises(UserError, match=r"holds no images; .*jpg.*--data skimage"):
        get_dataset("folder", root=str(tmp_path))


@pytest.mark.parametrize("params, message", [
    ({}, "'root' is missing"), ({"root": 3}, "root is 3"), ({"rot": "x"}, "did you mean 'root'"),
    ({"root": ".", "image_size": "3"}, "image_size is '3'"), ({"root": ".", "name": 3}, "unknown key 'name'"),
])
def test_wrong_parameters_are_named(params, message):
    with pytest.raises(UserError, match=message):
        get_dataset("ffhq", **params)


def test_photographs_of_scikit_image_are_there_without_a_download():
    dataset = get_dataset("skimage", image_size=64)
    assert dataset.names == ("astronaut", "chelsea", "coffee")
    images = torch.stack([dataset[i] for i in range(3)])
    assert images.shape == (3, 3, 64, 64)
    assert (images.flatten(1).std(1) > 0.2).all()
    assert get_dataset("skimage", images=["rocket", "camera", "rocket"]).names == ("rocket", "camera")


def test_unknown_photographs_get_the_choices():
    with pytest.raises(UserError, match="'astronout'; did you mean 'astronaut'"):
        get_dataset("skimage", images=["astronout"])
    with pytest.raises(UserError, match="image_size is 0"):
        get_dataset("skimage", image_size=0)
    with pytest.raises(UserError, match="images is empty"):
        get_dataset("skimage", images=[])
    with pytest.raises(UserError, match="images is 'coffee'"):
        get_dataset("skimage", images="coffee")


def test_unknown_datasets_get_the_choices():
    assert set(DATASETS) >= {"ffhq", "folder", "imagenet", "skimage"}
    with pytest.raises(UserError, match="unknown dataset 'ffqh'; did you mean 'ffhq'"):
        get_dataset("ffqh")


@pytest.mark.parametrize("batch_size, sizes", [(1, [1] * 6), (2, [2] * 3), (4, [4, 2]), (100, [6])])
def test_batches_are_images_by_samples(batch_size, sizes):
    dataset = get_dataset("skimage", image_size=8)
    batches = list(make_batches(read_images(dataset, range(3)), batch_size, num_samples=2))
    assert [len(b.names) for b in batches] == sizes
    assert [n for b in batches for n in b.names] == ["astronaut"] * 2 + ["chelsea"] * 2 + ["coffee"] * 2
    assert [s for b in batches for s in b.samples] == [0, 1] * 3
    images = torch.cat([b.images for b in batches])
    assert torch.equal(images, torch.stack([dataset[i // 2] for i in range(6)]))


def test_only_the_chosen_images_are_read():
    batches = list(make_batches(read_images(get_dataset("skimage", image_size=8), [2, 0]), 2))
    assert [b.names for b in batches] == [["coffee", "astronaut"]]


def test_unreadable_files_are_passed_over_or_raised(folder):
    (folder / "b.png").write_bytes(b"broken")
    (folder / "c.tif").write_bytes(b"")
    dataset = get_dataset("folder", image_size=8, root=str(folder))
    errors = []
    batches = list(make_batches(read_images(dataset, range(4), errors.append), 2))
    assert [b.names for b in batches] == [["a", "sub__deep__b"]]
    assert [e for e in map(str, errors) if "b.png" in e or "c.tif" in e] == list(map(str, errors))
    assert len(errors) == 2
    with pytest.raises(UserError, match=r"b\.png"):
        list(read_images(dataset, range(4)))


@pytest.mark.parametrize("target", ["nowhere.png", "link.png"])
def test_a_link_that_leads_nowhere_is_named(folder, target):
    (folder / "link.png").symlink_to(target)
    errors = []
    dataset = get_dataset("folder", image_size=8, root=str(folder))
    assert [name for name, _ in read_images(dataset, range(5), errors.append)] == ["a", "b", "c", "sub__deep__b"]
    assert [str(error).partition(": ")[0] for error in errors] == [f"cannot read image {folder / 'link.png'}"]


def test_pictures_of_other_formats_are_named(folder, capsys):
    (folder / "d.gif").write_bytes(b"GIF89a")
    (folder / "e.HEIC").touch()
    assert get_dataset("folder", root=str(folder)).names == ("a", "b", "c", "sub__deep__b")
    assert "2 pictures in formats that are not read (d.gif, ...); save them as PNG" in capsys.readouterr().err


# lists of images


def test_a_list_chooses_by_name_whatever_folder_and_ending(tmp_path):
    """FFHQ lies in folders of thousands, or flat, as PNG or JPEG; names, and so random numbers, are the list's."""
    wanted = ["00003.png", "00001.png", "00001.png", "00999.jpg"]
    (tmp_path / "mine.txt").write_text("# a list\n\n" + "\n".join(wanted) + "\n")
    for folder, files in (("nested", ["00000/00001.png", "00000/00003.png", "00000/00002.png", "00000/00999.png"]),
                          ("flat", ["00001.JPG", "00003.jpg", "00999.jpg", "99999.jpg"])):
        for seed, file in enumerate(files):
            picture(tmp_path / folder / file, seed)
        dataset = get_dataset("ffhq", root=str(tmp_path / folder), list=str(tmp_path / "mine.txt"), image_size=8)
        assert dataset.names == ("00003", "00001", "00999")
        assert [path.stem for path in dataset.paths] == ["00003", "00001", "00999"]
        dataset.require(dataset.names)
        whole = get_dataset("ffhq", root=str(tmp_path / folder), image_size=8)
        assert torch.equal(dataset[1], whole[0]) and len(whole) == 4


def test_missing_images_of_a_list_are_named_and_counted(folder):
    dataset = get_dataset("folder", root=str(folder), list="ffhq_val_1000")
    assert len(dataset) == 1000 and dataset.names[-1] == "00999"
    with pytest.raises(UserError, match=r"ffhq_val_1000 below .*: 1000 of 1000 images are not there \(00000.png, "
                                        r"00001.png, 00002.png, \.\.\.\); docs/data.md"):
        dataset.require(dataset.names)
    save(folder / "00000.png")
    dataset = get_dataset("folder", root=str(folder), list="ffhq_val_1000", image_size=8)
    dataset.require(dataset.names[:1])
    with pytest.raises(UserError, match=r"1 of 2 images are not there \(00001.png\)"):
        dataset.require(dataset.names[:2])
    with pytest.raises(UserError, match="cannot read image .*00001.png"):
        dataset[1]


@pytest.mark.parametrize("content, words", [
    (None, r"neither a list in data/lists nor a file; did you mean 'ffhq_val_1000'\? choose from .*imagenet_val_1000"),
    ("# nothing\n", "names no images"), (b"\xff\xfe\x00", "cannot be read .*expected a text file"),
    ("b.png\n", r"asks for b.png, and several files are called so \(b.png, sub/deep/b.png, \.\.\.\)"),
    ("other/b.png\n", None), ("sub/b.png\nb.bmp", "several files"),
])
def test_what_is_wrong_with_a_list_is_said(folder, tmp_path, content, words):
    save(folder / "sub/b.jpg")
    save(folder / "sub2/b.png")
    name = "ffhq_val_100"
    if content is not None:
        name = str(tmp_path / "mine.txt")
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if words is None:
        assert get_dataset("folder", root=str(folder), list=name).missing == {"other__b"}
        return
    with pytest.raises(UserError, match=words):
        get_dataset("folder", root=str(folder), list=name)


def test_the_lists_of_papers():
    """Their numbers are public: see docs/data.md; DiffPIR's of ImageNet by count, ends and sum."""
    def numbers(name: str) -> list[int]:
        return [int(path.stem.rpartition("_")[2]) for path in read_list(name)]

    assert numbers("ffhq_val_1000") == list(range(1000)) and numbers("ffhq_daps_100") == list(range(100))
    assert numbers("ffhq_diffpir_100") == list(range(69007, 70000, 10))
    assert numbers("imagenet_val_1000") == list(range(1, 1001))
    diffpir = numbers("imagenet_diffpir_100")
    assert (len(diffpir), diffpir[0], diffpir[-1], sum(diffpir)) == (100, 1, 4159, 94501)
    assert {path.suffix for path in read_list("imagenet_val_1000")} == {".JPEG"}
    for file in LISTS.glob("*.txt"):
        entries = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert file.read_text().startswith("# ") and len(read_list(file.stem)) == len(entries)


def test_a_run_on_a_list_goes_on_as_the_list_grows(run, workplace):
    for name in "abc":
        picture(Path(f"photos/sub/{name}.jpg"))
    Path("mine.txt").write_text("c.png\na.png\nz.png\n")
    options = ("--data", "photos", "--set", "data.list=mine.txt")
    status, _, err = run(*options)
    assert status == 2 and "data.list mine.txt below photos: 1 of 3 images are not there (z.png)" in err
    assert not Path("results").exists()
    assert run(*options, "--limit", "2")[0] == 0 and [row["image"] for row in rows()] == ["c", "a"]
    Path("mine.txt").write_text("c.png\na.png\nb.png\n")
    status, out, _ = run(*options)
    assert status == 0 and "3 images of 32 x 32 (2 finished before)" in out
    assert [row["image"] for row in rows()] == ["c", "a", "b"]
    assert re.search(r"list: mine.txt +# --set data.list", run(*options, "--print_config")[1])
    Path("other.txt").write_text("a\n")
    status, _, err = run("--data", "photos", "--set", "data.list=other.txt")
    assert status == 2 and "data.list" in err


def test_a_folder_is_looked_for_here_and_then_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "lon_009_08" in get_dataset("folder", root="data/faces").names
    (tmp_path / "data" / "faces").mkdir(parents=True)
    with pytest.raises(UserError, match="image folder data/faces holds no images"):
        get_dataset("folder", root="data/faces")
