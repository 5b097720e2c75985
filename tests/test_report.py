"""The page to look at: what it holds of whole, unfinished, diverged and differing runs, and how it shows it."""

import base64
import re
import shutil

import numpy as np
import yaml
from PIL import Image

from tests.report_pages import CONFIG, Page, make_run, table
from util.metrics.statistics import describe
from util.report import figures
from util.report.__main__ import main
from util.report.data import find_runs, read_curve


def test_a_page_is_whole_and_fetches_nothing(tmp_path, report):
    make_run(tmp_path, samples=2, curves=True)
    make_run(tmp_path, method="dpps", samples=2, curves=True)
    make_run(tmp_path, task="sr/gaussian_blur", method="dpps")
    status, page, out = report("--images", "2")
    assert status == 0 and "3 runs of 2 tasks" in out
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\(", text)
    assert not page.all("link") and not page.all("iframe")
    assert all(set(script) == set() for script in page.all("script"))
    sources = [image["src"] for image in page.all("img")]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    # 2 images: measurement, 2 methods, truth, and mean, deviation, error of either; then measurement, method, truth
    assert len(sources) == 2 * (4 + 6) + 2 * 3
    assert all(image["alt"] and image["width"] == image["height"] == "32" for image in page.all("img"))
    assert [h for h in page.texts if h in ("Inpainting", "Sr / gaussian blur")] == [
        "Inpainting", "Sr / gaussian blur"] * 2                     # links, then headings, in the order of the paths
    assert {"lang": "en"} in page.all("html")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["report.html"]


def test_the_pictures_are_those_of_the_run(tmp_path, report):
    path = make_run(tmp_path, images=("a",))
    _, page, _ = report()
    expected = [path / folder / "a.png" for folder in ("input", "recon", "label")]
    for image, file in zip(page.all("img"), expected, strict=True):
        shown = base64.b64decode(image["src"].partition(",")[2])
        (tmp_path / "shown.png").write_bytes(shown)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "shown.png")), np.asarray(Image.open(file)))


def test_every_score_is_in_the_table_of_images(tmp_path, report):
    paths = [make_run(tmp_path, method=method, samples=2) for method in ("dpps", "ps")]
    _, page, _ = report("--images", "1")
    shown = {tuple(row[:3]): row[3:] for row in page.rows if len(row) > 3 and row[1] in ("dpps", "ps")}
    names = ["psnr", "ssim", "distance", "chi_square", "std", "seconds"]
    assert len(shown) == 2 * 9
    for path in paths:
        for row in table(path):
            assert shown[row["image"], path.name, row["sample"]] == [row[name] for name in names]


def test_means_and_intervals_are_those_of_the_statistics(tmp_path, report):
    path = make_run(tmp_path)
    _, page, _ = report()
    expected = describe([float(row["psnr"]) for row in table(path)], [row["image"] for row in table(path)])
    line = next(row for row in page.rows if row[:1] == ["ps"])
    assert line[1] == "3" and float(line[2]) == expected["mean"]
    assert f"{expected['mean']:.2f}" in page.texts
    assert "\N{EN DASH}".join(f"{bound:.2f}" for bound in expected["ci95"]) in page.texts
    measured = next(row for row in page.rows if row[:1] == ["measurement"])
    assert float(measured[2]) == describe([float(r["psnr_input"]) for r in table(path)], "abc")["mean"]


def test_columns_are_sorted_by_buttons(tmp_path, report):
    make_run(tmp_path)
    _, page, _ = report()
    heads = page.all("th")
    assert heads and all(head["aria-sort"] == "none" and head["scope"] == "col" for head in heads)
    assert len([b for b in page.all("button") if b == {"type": "button"}]) == len(heads)


def test_of_several_samples_the_best_fit_is_shown(tmp_path, report):
    path = make_run(tmp_path, samples=2, images=("a",))
    _, page, _ = report()
    run = find_runs(tmp_path)[0]
    assert run.shown("a")["sample"] == "1"                          # the last one is marked as the best
    assert run.file("recon", "a", "1") == path / "recon" / "a_1.png"
    assert f"{float(table(path)[1]['psnr']):.2f} dB" in page.texts
    assert "Standard deviation of the posterior samples" in page.texts
    make_run(tmp_path, method="dpps", images=("a",))
    status, page, _ = report()                                      # one run with samples, one without
    assert status == 0 and "ps, deviation" in page.texts and "dpps, deviation" not in page.texts
    (path / "recon" / "a_0.png").unlink()                           # and one sample alone has no deviation
    assert "Standard deviation of the posterior samples" not in report()[1].texts


def test_without_truth_the_agreement_is_shown(tmp_path, report):
    path = make_run(tmp_path, truth=False, samples=2)
    status, page, _ = report()
    assert status == 0
    assert "Ground truth" not in page.text and "PSNR" not in page.text
    assert f"chi-square {float(table(path)[1]['chi_square']):.2f}" in page.texts


def test_trajectories_are_lines_with_words_and_absent_where_nothing_was_kept(tmp_path, report):
    make_run(tmp_path, curves=True)
    make_run(tmp_path, method="old")
    _, page, _ = report()
    (plot,) = page.all("svg")
    assert plot["role"] == "img" and "ps from 4.5 to 2.5" in plot["aria-label"]
    assert len(page.all("polyline")) == len(page.all("polygon")) == 1
    points = [tuple(map(float, point.split(","))) for point in page.all("polyline")[0]["points"].split()]
    assert points == sorted(points) and len(points) == 3            # rightwards and, as y points down, falling distance
    assert points[0][1] < points[2][1]
    curve = read_curve(find_runs(tmp_path / "inpainting" / "ps")[0], ["a", "b"])
    assert curve.steps.tolist() == [2, 1, 0] and curve.mean.tolist() == [4.5, 3.5, 2.5]
    shutil.rmtree(tmp_path / "inpainting" / "ps" / "trajectories")
    assert not report()[1].all("svg")


def test_diverged_images_are_said_and_count_nowhere(tmp_path, report):
    path = make_run(tmp_path, images=("a", "b"))
    rows = (path / "metrics.csv").read_text().splitlines()
    cells = rows[2].split(",")
    cells[2], cells[-1] = "999", "diverged at step 7"
    (path / "metrics.csv").write_text("\n".join([*rows[:2], ",".join(cells)]) + "\n")
    _, page, _ = report()
    assert "diverged at step 7" in page.texts
    assert "1 restoration by ps diverged" in page.text
    line = next(row for row in page.rows if row[:1] == ["ps"])
    assert float(line[2]) == float(rows[1].split(",")[2])
    assert "999.00" in page.texts                                   # but its row stays


def test_an_unfinished_run_is_shown_and_named(tmp_path, report):
    make_run(tmp_path, summary=False)
    make_run(tmp_path, method="dpps", images=("a",))
    empty = tmp_path / "inpainting" / "vanilla"
    empty.mkdir()
    (empty / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    status, page, _ = report()
    assert status == 0
    assert "ps has not come to its end" in page.text
    assert "different images so far: 1 (dpps), 3 (ps), 0 (vanilla)" in page.text
    assert "not restored yet" in page.texts
    (tmp_path / "inpainting" / "ps" / "summary.json").write_text("{")
    assert report()[0] == 0


def test_settings_that_differ_are_named(tmp_path, report):
    make_run(tmp_path)
    make_run(tmp_path, method="dpps", config={**CONFIG, "seed": 7, "conditioning": {"method": "y"}})
    _, page, _ = report()
    assert "The runs differ in seed: 7 (dpps), 0 (ps)." in page.texts
    assert "conditioning.method:" not in page.text


def test_a_run_may_be_named_itself(tmp_path, capsys):
    path = make_run(tmp_path)
    assert main([str(path), "--out", str(tmp_path / "one.html")]) == 0
    page = Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "Inpainting" in page.texts and "ps" in page.texts
    assert main([str(tmp_path / "inpainting"), "--out", str(tmp_path / "two.html")]) == 0
    assert "Inpainting" in Page((tmp_path / "two.html").read_text(encoding="utf-8")).texts


def test_too_many_pictures_lie_beside_the_page(tmp_path, report, monkeypatch):
    make_run(tmp_path)
    monkeypatch.setattr(figures, "EMBEDDED", 5000)
    _, page, _ = report()
    beside = [image["src"] for image in page.all("img") if not image["src"].startswith("data:")]
    assert 0 < len(beside) < len(page.all("img"))
    assert all(source.startswith("report_files/") and (tmp_path / source).is_file() for source in beside)


def test_large_pictures_are_reduced(tmp_path, report, monkeypatch):
    make_run(tmp_path, images=("a",))
    monkeypatch.setattr(figures, "LARGEST_SIDE", 20)
    _, page, _ = report()
    (tmp_path / "shown.png").write_bytes(base64.b64decode(page.all("img")[0]["src"].partition(",")[2]))
    assert Image.open(tmp_path / "shown.png").size == (20, 20)


def test_a_chosen_crop_is_that_of_every_row(tmp_path, report):
    make_run(tmp_path)
    _, page, _ = report("--crop", "4,8,16")
    assert [a["data-crop"] for a in page.all("div") if "data-crop" in a] == ["0.1250,0.2500,0.5000"] * 3


def test_samples_and_seed_are_told_where_all_runs_share_them(tmp_path, report):
    make_run(tmp_path, config={**CONFIG, "num_samples": 4, "seed": 7})
    assert "3 images, 4 posterior samples each, seed 7." in report()[1].texts
    make_run(tmp_path, method="other")
    _, page, _ = report()
    assert "3 images." in page.texts and "The runs differ in seed: 0 (other), 7 (ps)." in page.texts
