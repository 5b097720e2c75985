"""The page to look at: what it holds, what it leaves out, and that nothing in a results folder can break it."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from util import report_figures
from util.report import main
from util.report_data import find_runs, read_curve
from util.statistics import describe

COLUMNS = ["image", "sample", "psnr", "ssim", "psnr_input", "ssim_input", "distance", "seconds", "chi_square", "best",
           "std", "error_to_std", "status"]
CONFIG = {"conditioning": {"method": "x"}, "seed": 0,
          "measurement": {"operator": {"name": "inpainting"}, "noise": {"name": "gaussian", "sigma": 0.05}}}
VOID = {"img", "meta", "br", "col", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and collects them."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []             # data-value of the cells of every row of a table
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append(dict(attrs)["data-value"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def make_run(results: Path, task: str = "inpainting", method: str = "ps", images: tuple[str, ...] = ("a", "b", "c"),
             samples: int = 1, truth: bool = True, curves: bool = False, summary: bool = True, status: str = "ok",
             config: dict | None = None) -> Path:
    """A run's folder as sample_condition.py leaves it, with invented numbers."""
    path = results / task / method
    path.mkdir(parents=True)
    rng, rows = np.random.default_rng(len(method)), []
    for i, image in enumerate(images):
        own = [*map(str, range(samples)), *["mean"] * (samples > 1)]
        for k, sample in enumerate(own):
            figures = [f"{v:.6g}" for v in rng.uniform(10, 30, 9)]
            row = dict(zip(COLUMNS, [image, sample, *figures, "", ""], strict=False), status=status,
                       best="" if sample == "mean" else str(int(k == samples - 1)), error_to_std="")
            if not truth:
                row |= {"psnr": "", "ssim": "", "psnr_input": "", "ssim_input": ""}
            rows.append(row)
            picture(path / "recon" / (f"{image}_{sample}.png" if samples > 1 else f"{image}.png"), 10 * i + k)
        picture(path / "input" / f"{image}.png", i)
        if truth:
            picture(path / "label" / f"{image}.png", 100 + i)
        if curves:
            (path / "trajectories").mkdir(exist_ok=True)
            lines = [["step", *map(str, range(samples))], *([s, *[f"{s + 2.5}"] * samples] for s in (2, 1, 0))]
            (path / "trajectories" / f"{image}.csv").write_text("".join(",".join(map(str, c)) + "\n" for c in lines))
    with open(path / "metrics.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (path / "config.yaml").write_text(yaml.safe_dump(config or CONFIG))
    if summary:
        (path / "summary.json").write_text(json.dumps({"device": "CPU", "seed": 0, "metrics": {}}))
    return path


def table(path: Path) -> list[dict[str, str]]:
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def report(tmp_path, capsys):
    """report(*options) -> (exit status, the page or None, standard output and error)."""
    def report(*options: str) -> tuple[int, Page | None, str]:
        status = main([str(tmp_path), *options])
        streams = capsys.readouterr()
        file = tmp_path / "report.html"
        return status, Page(file.read_text(encoding="utf-8")) if file.exists() else None, streams.out + streams.err
    return report


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


def test_the_policy_allows_the_own_script_and_no_other(tmp_path, report):
    make_run(tmp_path)
    report()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"script-src &#x27;sha256-{digest}&#x27;" in policy
    assert policy.startswith("default-src &#x27;none&#x27;")


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
    shutil.rmtree(path / "std", ignore_errors=True)
    make_run(tmp_path, method="dpps", images=("a",))
    assert report()[0] == 0                                         # one run with samples, one without


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


@pytest.mark.parametrize("text", ["", "step,0\n", "step,0\n1,nan\n0,inf\n", "step,0\n1,0\n0,-1\n", "step,0\n1,x\n",
                                  "step,0\n\n1\n", "a\0b", "step,0\n5,1e-300\n0,1e300\n"])
def test_odd_trajectories_are_no_obstacle(tmp_path, report, text):
    path = make_run(tmp_path, curves=True, images=("a",))
    (path / "trajectories" / "a.csv").write_text(text)
    assert report()[0] == 0


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


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&amp;b", "'; alert(1)//", "new\nline",
           "\u202eevil", "-rf", "--images=9", "</style><b>", "%2e%2e", "data:text/html,x", "日本語", "{x}", "${x}")


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_and_nothing_else(tmp_path, report, name):
    make_run(tmp_path, images=("plain",), curves=True, samples=2)
    plain = [tag for tag, _ in report()[1].elements]
    shutil.rmtree(tmp_path / "inpainting")
    if "/" in name:
        name = name.replace("/", "\u2215")
    make_run(tmp_path, images=(name,), curves=True, samples=2)
    _, page, _ = report()
    assert [tag for tag, _ in page.elements] == plain
    assert name in page.texts
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_hostile_methods_settings_and_facts_are_text(tmp_path, report):
    evil = "<script>x<b>"
    path = make_run(tmp_path, task=f"{evil}t", method=f"{evil}m", status=f"{evil}s", curves=True, samples=2,
                    config={f"{evil}k": f"{evil}v", "measurement": {"operator": {"name": evil}, "noise": evil}})
    (path / "summary.json").write_text(json.dumps({"device": f"{evil}d", evil: 1}))
    status, page, _ = report("--title", evil)
    assert status == 0
    assert len(page.all("script")) == 1
    for mark in "tmskvd":
        assert f"{evil}{mark}" in page.text


def test_a_table_that_points_outside_is_refused(tmp_path, report):
    path = make_run(tmp_path)
    picture(tmp_path / "secret.png")
    for name in ("../../../secret", "/etc/passwd", "..", ""):
        (path / "metrics.csv").write_text(f"image,sample,psnr\n{name},0,1\n")
        status, page, out = report()
        assert (status, page) == (2, None) and "is not the table of a run" in out
    (path / "metrics.csv").write_text("image,sample,psnr\na,/../../secret,1\n")
    assert report()[0] == 2


@pytest.mark.parametrize("text", ["", "image,sample\n", "what,ever\n1,2\n", "image,sample,psnr\na,0\n",
                                  "image,sample,psnr\na,0,1,2\n", "image,sample,psnr\nzzz,0,abc\n", "\xff\0"])
def test_odd_tables_are_shown_or_refused(tmp_path, report, text):
    path = make_run(tmp_path)
    (path / "metrics.csv").write_text(text, encoding="latin-1")
    status, page, out = report()
    assert (status == 2 and len(out.splitlines()) == 1) or (status == 0 and page is not None)


def test_missing_and_damaged_pictures_leave_a_gap(tmp_path, report):
    path = make_run(tmp_path, images=("a", "b"))
    (path / "recon" / "a.png").unlink()
    status, page, _ = report()
    assert status == 0 and page.texts.count("no picture") == 1
    (path / "recon" / "b.png").write_bytes(b"no picture at all")
    status, page, out = report()
    assert status == 1 and page.texts.count("no picture") == 2
    assert len(out.splitlines()) == 2 and "b.png" in out


def test_mistakes_end_with_status_2_and_one_line(tmp_path, report):
    status, page, out = report()
    assert (status, page) == (2, None) and "holds no run" in out and len(out.splitlines()) == 1
    make_run(tmp_path)
    for options, words in ((("--images", "0"), "whole number"), (("--crop", "1,2"), "X,Y,SIDE"),
                           (("--crop", "1,2,0"), "X,Y,SIDE"), (("--imagse", "3"), "did you mean '--images'"),
                           (("--out", str(tmp_path)), "is a folder")):
        status, page, out = report(*options)
        assert status == 2 and page is None and words in out and len(out.splitlines()) == 1
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path / "inpainting" / "ps" / "metrics.csv")]) == 2


@pytest.mark.skipif(os.name != "posix" or not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, report):
    make_run(tmp_path)
    assert report()[0] == 0
    before = (tmp_path / "report.html").read_bytes()
    status, _, out = report("--out", "/proc/self/report.html")
    assert status == 2 and "--out /proc/self/report.html cannot be written" in out
    table = next(tmp_path.rglob("metrics.csv"))
    content = table.read_bytes()
    status, _, out = report("--out", str(table))
    assert status == 2 and "metrics.csv is there already and is no report of ours" in out
    assert table.read_bytes() == content and (tmp_path / "report.html").read_bytes() == before
    report()
    assert (tmp_path / "report.html").read_bytes() == before        # the same results, the same page


def test_a_run_may_be_named_itself(tmp_path, capsys):
    path = make_run(tmp_path)
    assert main([str(path), "--out", str(tmp_path / "one.html")]) == 0
    page = Page((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "Inpainting" in page.texts and "ps" in page.texts
    assert main([str(tmp_path / "inpainting"), "--out", str(tmp_path / "two.html")]) == 0
    assert "Inpainting" in Page((tmp_path / "two.html").read_text(encoding="utf-8")).texts


def test_too_many_pictures_lie_beside_the_page(tmp_path, report, monkeypatch):
    make_run(tmp_path)
    monkeypatch.setattr(report_figures, "EMBEDDED", 5000)
    _, page, _ = report()
    beside = [image["src"] for image in page.all("img") if not image["src"].startswith("data:")]
    assert 0 < len(beside) < len(page.all("img"))
    assert all(source.startswith("report_files/") and (tmp_path / source).is_file() for source in beside)


def test_large_pictures_are_reduced(tmp_path, report, monkeypatch):
    make_run(tmp_path, images=("a",))
    monkeypatch.setattr(report_figures, "LARGEST_SIDE", 20)
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
