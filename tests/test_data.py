"""Datasets: which files are images, what they are called, and how they come in batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataloader import DATASETS, get_dataset, make_batches, read_images, unique_names
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
    from pathlib import Path
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
