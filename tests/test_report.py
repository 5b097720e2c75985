"""The page to look at: what it holds of whole, unfinished, diverged and differing runs, and how it shows it."""

import base64
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.report_pages import SETTINGS, Page, make_run
from util.metrics.statistics import describe
from util.report import pictures
from util.report.__main__ import main
from util.report.pictures import telling_crop
from util.report.runs import find_runs, read_curve
from util.report.tables import COLUMNS, digits
from util.run.table import read_table


def test_a_page_is_whole_and_fetches_nothing(tmp_path, report):
    make_run(tmp_path, samples=2, curves=True)
    make_run(tmp_path, method="dpps", samples=2, curves=True)
    make_run(tmp_path, task="tables/gaussian_blur", method="dpps", measurement={"operator": "other"})
    status, page, out = report("--images", "2")
    assert status == 0 and "3 runs of 2 tasks" in out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", text)
    assert not page.all("link") and not page.all("iframe")
    assert all(set(script) == set() for script in page.all("script"))
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    # 2 images: measurement, 2 methods, truth, and mean, deviation, error of either; then measurement, method, truth
    assert len(page.pictures) == 2 * (4 + 6) + 2 * 3
    assert all(image["alt"] and image["width"] == image["height"] == "32" for image in page.pictures)
    assert [h for h in page.texts if h in ("Inpainting", "Gaussian blur")] == ["Inpainting", "Gaussian blur"] * 2
    assert {"DPS", "DPPS"} < set(page.texts) and {"lang": "en"} in page.all("html")
    for words in ("Of the 2 posterior samples of an image", "operator: inpainting", "noise: gaussian (sigma 0.05)",
                  "3 images, seed 0; the first 2 are shown."):
        assert words in page.text
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["report.html"]
    before = (tmp_path / "report.html").read_bytes()
    report("--images", "2")
    assert (tmp_path / "report.html").read_bytes() == before        # the same results, the same page


def test_the_pictures_are_those_of_the_run(tmp_path, report, monkeypatch):
    path = make_run(tmp_path, images=("a",))
    expected = [path / folder / "a.png" for folder in ("input", "recon", "label")]
    for image, file in zip(report()[1].pictures, expected, strict=True):
        assert np.array_equal(opened(image["src"], tmp_path), np.asarray(Image.open(file)))
    monkeypatch.setattr(pictures, "LARGEST_SIDE", 20)
    assert opened(report()[1].pictures[0]["src"], tmp_path).shape == (20, 20, 3)


def opened(source, folder):
    (folder / "shown.png").write_bytes(base64.b64decode(source.partition(",")[2]))
    return np.asarray(Image.open(folder / "shown.png"))


def test_every_score_is_in_the_table_of_images(tmp_path, report):
    paths = {"DPPS": make_run(tmp_path, method="dpps", samples=2), "DPS": make_run(tmp_path, method="ps", samples=2)}
    page = report("--images", "1")[1]
    shown = {tuple(row[:3]): row[4:] for row in page.rows if len(row) > 4 and row[3] == "ok"}
    names = [c for c in COLUMNS if "aligned" not in c and c not in ("lpips_vgg", "error_to_std")]
    assert len(shown) == 2 * 9
    for label, path in paths.items():
        for row in read_table(path):
            assert shown[row.image, label, row.sample] == [f"{getattr(row, name):.6g}" for name in names]


def test_means_and_intervals_are_those_of_the_statistics(tmp_path, report):
    rows = read_table(make_run(tmp_path))
    page = report()[1]
    expected = describe([row.psnr for row in rows], "abc")
    line = next(row for row in page.rows if row[:1] == ["DPS"])
    assert line[1] == "3" and float(line[2]) == expected["mean"]
    assert f"{expected['mean']:.2f}" in page.texts
    assert "\N{EN DASH}".join(f"{bound:.2f}" for bound in expected["ci95"]) in page.texts
    measured = next(row for row in page.rows if row[:1] == ["measurement"])
    assert float(measured[2]) == describe([row.psnr_input for row in rows], "abc")["mean"]
    heads = page.all("th")
    assert heads and all(head["aria-sort"] == "none" and head["scope"] == "col" for head in heads)
    assert len([b for b in page.all("button") if b == {"type": "button"}]) == len(heads)        # they sort


def test_of_several_samples_the_best_fit_is_shown(tmp_path, report):
    path = make_run(tmp_path, samples=2, images=("a",))
    page = report()[1]
    (run,), _ = find_runs([str(tmp_path)])
    assert run.shown("a").sample == "1" and run.picture(run.shown("a")) == path / "recon" / "a_1.png"
    assert f"{read_table(path)[1].psnr:.2f} dB" in page.texts
    make_run(tmp_path, method="dpps", images=("a",))
    status, page, _ = report()                                      # one run with samples, one without
    assert status == 0 and "DPS, deviation" in page.texts and "DPPS, deviation" not in page.texts
    (path / "recon" / "a_0.png").unlink()                           # and one sample alone has no deviation
    assert "Standard deviation of the posterior samples" not in report()[1].texts


def test_without_truth_the_agreement_is_shown(tmp_path, report):
    path = make_run(tmp_path, truth=False, samples=2)
    status, page, _ = report()
    assert status == 0 and "Ground truth" not in page.text and "PSNR" not in page.text
    assert f"chi-square {read_table(path)[1].chi_square:.2f}" in page.texts


def test_trajectories_are_a_plot_with_words_and_absent_where_nothing_was_kept(tmp_path, report):
    make_run(tmp_path, curves=True)
    path = make_run(tmp_path, method="old")
    plot, = [image for image in report()[1].all("img") if "class" in image]
    assert plot["alt"] == "Measurement distance over the steps: DPS from 4.5 to 2.5"
    svg = base64.b64decode(plot["src"].partition(",")[2]).decode()
    assert svg.count("#0072b2") == 0 and svg.count("#d55e00") >= 2                  # the second run's line and band
    (run, other), _ = find_runs([str(path), str(tmp_path)])
    assert read_curve(run) is None
    assert read_curve(other).tolist() == [[2, 1, 0], *[[4.5, 3.5, 2.5]] * 3]


def test_diverged_images_are_said_and_count_nowhere(tmp_path, report):
    path = make_run(tmp_path, images=("a", "b"))
    rows = (path / "metrics.csv").read_text().splitlines()
    cells = rows[2].split(",")
    cells[2], cells[-1] = "999", "diverged at step 7"
    (path / "metrics.csv").write_text("\n".join([*rows[:2], ",".join(cells)]) + "\n")
    page = report()[1]
    assert "diverged at step 7" in page.texts and "1 restoration by DPS diverged and counts nowhere." in page.texts
    assert float(next(row for row in page.rows if row[:1] == ["DPS"])[2]) == float(rows[1].split(",")[2])
    assert "999.00" in page.texts                                   # but its row stays


def test_an_unfinished_run_is_shown_and_named(tmp_path, report):
    make_run(tmp_path, summary=False)
    make_run(tmp_path, method="dpps", images=("a",))
    empty = tmp_path / "inpainting" / "vanilla"
    empty.mkdir()
    (empty / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    status, page, _ = report()
    assert status == 0
    assert "DPS has not come to its end: it has no summary.json." in page.texts
    assert "different images so far: 1 (DPPS), 3 (DPS), 0 (Prior alone)" in page.text
    assert "not restored yet" in page.texts
    (tmp_path / "inpainting" / "ps" / "summary.json").write_text("{")
    assert report()[0] == 0


# ---- which runs stand side by side, and what they are called ---------------------------------------------------------

def headings(page: Page) -> list[list[str]]:
    """The titles under the first row of pictures of every section."""
    found, rows = [], re.split("Restorations\n", "\n".join(page.texts).partition("Click a column")[2])[1:]
    for section in rows:
        names = re.findall(r"^(Measured|DPS.*|DPPS.*|Lift.*|Mine.*|Ground truth)$", section, re.MULTILINE)
        found.append(names[:names.index("Ground truth")][1:])
    return found


def test_runs_of_the_same_measurements_stand_side_by_side_wherever_they_lie(tmp_path, report):
    """As the folders of tables and of tuning: one per method or point."""
    for scale, likelihood in ((0.3, "point"), (1.0, "tweedie")):
        make_run(tmp_path, task=f"tune/scale={scale}/inpainting", conditioning={"method": "ps", "params": {
            "scale": scale, "likelihood": {"name": likelihood}}})
    make_run(tmp_path, task="table/inpainting/dpps/inpainting", method="dpps", conditioning={"method": "dpps"})
    page = report()[1]
    labels = ["DPPS", "DPS (likelihood point, scale 0.3)", "DPS (likelihood tweedie, scale 1.0)"]
    assert headings(page) == [labels]
    assert "differ" not in page.text
    make_run(tmp_path, task="z/inpainting", seed=7)
    page = report()[1]
    assert headings(page) == [labels, ["DPS"]]
    assert page.texts.count("Inpainting (seed 0)") == page.texts.count("Inpainting (seed 7)") == 2


def test_runs_come_in_the_order_given_and_are_called_as_asked(tmp_path, capsys):
    paths = [make_run(tmp_path, task=f"{name}/inpainting", method=method, conditioning={"method": method})
             for name, method in (("a", "ps"), ("b", "ps"), ("c", "dpps"))]
    out = str(tmp_path / "one.html")
    options = [str(tmp_path / name) for name in "cba"] + ["--out", out]
    assert main([*options, "--label", f"{tmp_path / 'a'}=Mine", "--label", f"{paths[2]}=Mine = so"]) == 0
    assert headings(Page((tmp_path / "one.html").read_text(encoding="utf-8"))) == [["Mine = so", "DPS", "Mine"]]
    assert main(options) == 0                                       # two that nothing but their folders distinguishes
    assert headings(Page((tmp_path / "one.html").read_text(encoding="utf-8"))) == [
        ["DPPS", f"DPS ({paths[1]})", f"DPS ({paths[0]})"]]
    capsys.readouterr()
    for label, words in (("x", "expected FOLDER=NAME"), (f"{tmp_path / 'b'}=x", "none of the runs is there")):
        assert main([str(paths[0]), "--label", label]) == 2
        assert words in capsys.readouterr().err


def test_settings_that_differ_are_named_and_those_of_other_methods_are_none(tmp_path, report):
    make_run(tmp_path, diffusion={"steps": 5})
    make_run(tmp_path, method="dpps", diffusion={"steps": 9}, num_samples=4, conditioning={"method": "y"})
    path = make_run(tmp_path, method="lift", conditioning={"method": "lift"}, num_samples=4)
    text = yaml.safe_dump({key: value for key, value in SETTINGS.items() if key != "checkpoint"})
    (path / "config.yaml").write_text(text + "num_samples: 4\n")
    assert [text for text in report()[1].texts if text.startswith("The runs differ")] == [
        "The runs differ in diffusion.steps: 9 (DPPS), 5 (DPS).",
        "The runs differ in num_samples: 4 (DPPS), 4 (Lifted), unset (DPS)."]


# ---- pictures --------------------------------------------------------------------------------------------------------

def test_the_crop_lies_where_methods_differ_most(tmp_path, report):
    a = torch.zeros(3, 40, 80)
    b = a.clone()
    b[:, 20:30, 50:60] = 1
    assert telling_crop([a, b], []) == telling_crop([a], [b]) == (50 / 80, 20 / 40, 10 / 40)
    assert telling_crop([a, torch.zeros(3, 8, 8)], []) == telling_crop([], []) == (0.375, 0.375, 0.25)
    make_run(tmp_path)
    crops = [a["data-crop"].split(",") for a in report()[1].all("div") if "data-crop" in a]
    assert len(crops) == 3 and all(0 <= float(share) <= 1 for crop in crops for share in crop)


@pytest.mark.parametrize("column, value, text", [
    ("distance", 4.18, "4.180"), ("distance", 1234.4, "1234"), ("chi_square", 210.4, "210"),
    ("chi_square", float("inf"), "inf"), ("psnr", 20, "20.00"), ("psnr", float("nan"), "\N{EN DASH}")])
def test_numbers_of_a_column_have_the_same_digits(column, value, text):
    assert digits(column, value) == text
