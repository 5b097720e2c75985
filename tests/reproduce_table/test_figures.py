"""What is printed side by side: our figures, the paper's, their difference, and why a figure is absent."""

import io
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tests.reproduce_table.conftest import read_csv
from util import img_utils
from util.img_utils import load_image, save_grid
from util.metrics.names import METRICS, OF_RUNS, OF_SETS, SHORT
from util.metrics.perceptual import MIN_SIDE
from util.reproduce_table import __main__ as reproduce_table
from util.reproduce_table import scores
from util.reproduce_table.job import Job, Options
from util.reproduce_table.plots import _label, draw, scatter
from util.reproduce_table.scores import Entry, Score, score
from util.reproduce_table.spec import load_table
from util.reproduce_table.text import latex
from util.run.table import NUMBERS


def test_a_table_is_run_and_stands_beside_the_paper(run, in_process, monkeypatch):
    monkeypatch.setattr(reproduce_table, "draw", draw)
    status, out, err = run("--limit", "2", "--seed", "4")
    assert status == 0, err
    assert [command[command.index("--save_dir") + 1] for command in in_process] == [
        f"results/tables/tiny/{name}" for name in ("sr/dps", "sr/free", "noise/dps")]
    folder = Path("results/tables/tiny")
    text = (folder / "table.md").read_text()
    assert text in out
    row, = [line for line in text.splitlines() if line.startswith("| SR ") and " 99 " in line]
    measured = [float(r["psnr"]) for r in read_csv(folder / "sr/dps/super_resolution/ps/metrics.csv")]
    mean = sum(measured) / 2
    assert len(measured) == 2 and f"{mean:.2f} ± {abs(measured[0] - measured[1]) / 2:.2f}" in row
    assert f"{mean - 99:+.2f} *" in row and row.split("|")[-2].strip() == "2"
    assert "paper only" in next(line for line in text.splitlines() if "Other" in line)
    for words in ("A note.", "P, Table 9", "Seed 4", "skimage, 2 asked for", "2 steps", '"sigma": 0.05', "tiny.pt"):
        assert words in text
    cells = {(r["metric"], r["task"], r["method"]): r for r in read_csv(folder / "table.csv")}
    dps = cells["psnr", "sr", "dps"]
    assert float(dps["ours"]) == pytest.approx(mean, rel=1e-4)
    assert [dps[k] for k in ("paper", "source", "excludes_paper", "images", "seed", "steps")] == [
        "99.0", "P, Table 9, row Ours", "1", "2", "4", "2"]
    assert cells["ssim", "sr", "dps"]["paper"] == "" and cells["ssim", "sr", "dps"]["ours"]
    assert cells["psnr", "sr", "other"]["remark"] == "not run"
    assert Image.open(folder / "table.png").width > 600
    assert "super_resolution by ps" in (folder / "sr/dps/log.txt").read_text()
    assert rf"{mean:.2f} \pm" in (folder / "table.tex").read_text()


def test_a_list_of_images_is_named_underneath(run, in_process, tmp_path):
    photographs, names = tmp_path / "photographs", tmp_path / "names.txt"
    photographs.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (16, 16), "teal").save(photographs / f"{name}.png")
    names.write_text("b.png\n")
    status, out, err = run("--data", str(photographs), "--set", f"data.list={names}", "--tasks", "sr",
                           "--methods", "dps")
    assert status == 0, err
    assert f"images: {photographs} ({names}), 1 asked for" in out


def test_of_several_samples_the_best_fit_counts(run, tree, in_process):
    tree["metrics"] = ["psnr", "error_to_std"]
    assert run("--limit", "1", "--methods", "free", "--save_dir", "single")[0] == 0
    assert "error / deviation takes several samples, see --num_samples" in Path("single/table.md").read_text()
    assert run("--limit", "2", "--methods", "dps", "--num_samples", "2")[0] == 0
    rows = read_csv("results/tables/tiny/sr/dps/super_resolution/ps/metrics.csv")
    best = [min((r for r in rows if r["image"] == image and r["sample"] != "mean"), key=lambda r: float(r["distance"]))
            for image in ("astronaut", "chelsea")]
    ours = {r["metric"]: r for r in read_csv("results/tables/tiny/table.csv")
            if (r["task"], r["method"]) == ("sr", "dps")}
    assert float(ours["psnr"]["ours"]) == pytest.approx(sum(float(r["psnr"]) for r in best) / 2, rel=1e-4)
    means = [float(r["error_to_std"]) for r in rows if r["sample"] == "mean"]
    assert float(ours["error_to_std"]["ours"]) == pytest.approx(sum(means) / 2, rel=1e-4)
    assert "lowest measurement error" in Path("results/tables/tiny/table.md").read_text()


def test_metrics_that_cannot_be_had_give_their_reason(run, tree, in_process):
    tree["metrics"] = ["psnr", "lpips", "fid"]
    status, _, err = run("--limit", "1", "--methods", "free")
    assert status == 0, err
    text = Path("results/tables/tiny/table.md").read_text()
    assert "LPIPS" in text.partition("## LPIPS (vgg), lower is better")[2].partition("##")[0]
    assert "FID is left out" in text
    assert {r["ours"] for r in read_csv("results/tables/tiny/table.csv") if r["metric"] != "psnr"} == {""}


def test_fid_is_of_the_saved_images(run, tree, in_process, tiny_inception):
    scores._metrics.cache_clear()
    tree["metrics"] = ["fid"]
    assert run("--methods", "free")[0] == 0
    row, = [r for r in read_csv("results/tables/tiny/table.csv") if r["method"] == "free"]
    assert float(row["ours"]) > 0 and row["images"] == "3" and row["ci95_low"] == ""
    job, = reproduce_table.plan(load_table("tiny.yaml", ["free"]), reproduce_table.parse_arguments(
        ["tiny.yaml"]), Path("results/tables/tiny"))
    for name in job.names:
        shutil.copy(job.path / "label" / f"{name}.png", job.path / "recon" / f"{name}.png")
    assert score(job, "fid").value == pytest.approx(0, abs=1e-3)
    scores._metrics.cache_clear()


def test_a_table_of_before_there_was_st_lpips_gets_it_from_the_saved_images(run, tree, in_process, monkeypatch):
    monkeypatch.setitem(MIN_SIDE, "st_lpips", 1)
    tree["metrics"] = ["st_lpips"]
    assert run("--methods", "free")[0] == 0
    file, = Path("results/tables/tiny").rglob("metrics.csv")
    table = read_csv(file)
    expected = sum(float(row["st_lpips"]) for row in table) / 3
    keys = [key for key in table[0] if not key.startswith("st_lpips")]
    file.write_text("".join(",".join(row) + "\n" for row in (keys, *([row[key] for key in keys] for row in table))))
    scores._metrics.cache_clear()
    status, _, err = run("--methods", "free")
    assert status == 0 and len(in_process) == 1, err                    # nothing was restored again
    row, = [r for r in read_csv("results/tables/tiny/table.csv") if r["method"] == "free"]
    assert float(row["ours"]) == pytest.approx(expected, rel=0.02) and row["images"] == "3"
    scores._metrics.cache_clear()


def test_latex_is_what_a_paper_prints(tree):
    """A row per method, ours and the paper's, tasks and metrics across; the best of ours in bold."""
    tree["title"], tree["tasks"]["sr"]["title"] = "T", "50 % of _x_"
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    table = load_table("tiny.yaml")
    values = {("dps", "psnr"): Score(20.5, 20, 21, 3), ("free", "psnr"): Score(19.0, images=1),
              ("dps", "ssim"): Score(0.75, 0.7, 0.8, 3), ("free", "ssim"): Score(0.8125, 0.8, 0.825, 3)}
    entries = [Entry(cell, cell.run, values.get((cell.method, cell.metric), Score())) for cell in table.cells]
    lines = latex(table, [entry for entry in entries if entry.cell.task == "sr"]).splitlines()
    assert lines[1:] == [
        r"\begin{tabular}{lrr}", r"\toprule", r" & \multicolumn{2}{c}{50 \% of \_x\_} \\",
        r"Method & PSNR (dB) $\uparrow$ & SSIM $\uparrow$ \\", r"\midrule",
        r"DPS & $\mathbf{20.50 \pm 0.50}$ & $0.750 \pm 0.050$ \\", r"DPS (paper) & 99 &  \\",
        r"Free & $19.00$ & $\mathbf{0.812 \pm 0.012}$ \\", r"Other (paper) & 1.5 & 0.2 \\", r"\bottomrule",
        r"\end{tabular}"]


@pytest.mark.parametrize("kind", [{"plot": "bar"}, {"plot": "line", "log_x": True, "x_label": "steps"}])
def test_a_picture_shows_our_intervals_and_the_papers_figures(tree, kind, monkeypatch):
    drawn = []
    for name, original in (("errorbar", Axes.errorbar), ("plot", Axes.plot)):
        monkeypatch.setattr(Axes, name, lambda *args, name=name, original=original, **options:
                            drawn.append((name, *args[1:])) or original(*args, **options))
    tree |= kind
    tree["tasks"]["sr"]["x"], tree["tasks"]["noise"]["x"] = 1, 10
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    table = load_table("tiny.yaml")
    own = [Entry(cell, cell.run, Score(20.5, 20, 21, 3) if cell.run and cell.metric == "psnr" else Score())
           for cell in table.cells]
    picture = Image.open(io.BytesIO(draw(table, own)))
    assert picture.width > 600 and len(picture.convert("RGB").getcolors(1 << 20)) > 50
    lists = kind["plot"] == "line"
    assert [item for item in drawn if item[0] == "errorbar" and 20.5 in np.ravel(item[2 if lists else 1])]
    assert [item for item in drawn if item[0] == "plot" and 99.0 in np.ravel(item[2 if lists else 1])]


@pytest.mark.parametrize("paper, excluded", [(10.0, False), (9.0, True), (12.9, False), (13.1, True)])
def test_a_figure_is_marked_when_the_interval_excludes_it(tree, paper, excluded):
    tree["paper"][0]["rows"]["dps"]["values"] = [paper, None]
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    cell = load_table("tiny.yaml").cells[0]
    entry = Entry(cell, None, Score(11.0, 9.5, 13.0, 4))
    assert entry.excludes_paper == excluded
    assert entry.difference == pytest.approx(11 - paper)
    assert not Entry(cell, None, Score(11.0, images=1)).excludes_paper  # one image has no interval


def test_every_metric_is_a_column_that_runs_write(tree):
    assert {*METRICS} - {*OF_SETS, *OF_RUNS} <= {*NUMBERS} and {*SHORT.values()} <= {*METRICS}
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    table = load_table("tiny.yaml")
    job = Job(table.runs[0], table.runs[0].load("skimage"), ["astronaut"], Path("nowhere"), Options(None, 0, 1, 1), 2,
              2)
    assert score(job, "psnr").remark == "no image is finished"


def test_a_table_of_the_papers_figures_alone(run, tree):
    del tree["methods"]["dps"], tree["methods"]["free"], tree["paper"][0]["rows"]["dps"]
    tree["methods"]["other"]["title"] = "A|B"
    assert run("--dry_run")[0] == run()[0] == 0
    assert "| SR   | A\\|B   |   1.5 |  paper only |" in Path("results/tables/tiny/table.md").read_text()


def test_methods_are_compared_with_a_reference_image_by_image(run, tree, in_process):
    tree |= {"reference": "dps", "scatter": [["psnr", "ssim"]], "paper": []}
    status, out, err = run("--limit", "2")
    assert status == 0, err
    folder = Path("results/tables/tiny")
    dps, free = ([float(row["psnr"]) for row in read_csv(folder / f"sr/{path}/metrics.csv")]
                 for path in ("dps/super_resolution/ps", "free/super_resolution/vanilla"))
    differences = [b - a for a, b in zip(dps, free, strict=True)]
    cells = {(row["metric"], row["task"], row["method"]): row for row in read_csv(folder / "table.csv")}
    found = cells["psnr", "sr", "free"]
    assert float(found["against"]) == pytest.approx(sum(differences) / 2, rel=1e-3)
    assert [float(found[f"against_{end}"]) for end in ("low", "high")] == pytest.approx(sorted(differences), rel=1e-3)
    assert cells["psnr", "sr", "dps"]["against"] == "" and "too narrow for fewer than 10" in out       # of two images
    mark = " *" if min(differences) > 0 or max(differences) < 0 else ""
    half = abs(differences[0] - differences[1]) / 2
    assert f"{sum(differences) / 2:+.2f} ± {half:.2f}{mark} |" in out and "against DPS" in out
    assert Image.open(folder / "ssim_against_psnr.png").width > 600


def test_a_picture_of_one_image_by_every_method(run, tree, in_process, monkeypatch):
    """A line per task; in the place of a method what its run has saved, white where it has no run."""
    shown = []
    monkeypatch.setattr("util.reproduce_table.picture.save_grid", lambda *grid: shown.append(grid) or save_grid(*grid))
    status, _, err = run("--limit", "2", "--picture", "chelsea")
    assert status == 0, err
    folder = Path("results/tables/tiny")
    (path, rows, captions, header), = shown
    assert path == folder / "chelsea.png" and Image.open(path).width > 4 * img_utils.GRID_CELL
    assert header == ["Measurement", "DPS", "Free", "Ground truth"]
    assert [line[0] for line in captions] == ["SR", "Denoising"] and captions[1][2] == ""
    runs = "sr/dps/super_resolution/ps", "noise/dps/noise/ps"
    for row, texts, run_folder in zip(rows, captions, runs, strict=True):
        for x, name in zip((row[0], row[1], row[3]), ("input", "recon", "label"), strict=True):
            assert torch.equal(x, load_image(folder / run_folder / name / "chelsea.png"))
        psnr, = (r["psnr"] for r in read_csv(folder / run_folder / "metrics.csv") if r["image"] == "chelsea")
        assert texts[1] == f"{float(psnr):.2f} dB"
    assert torch.equal(rows[1][2], torch.ones_like(rows[1][3]))
    assert run("--limit", "2", "--tasks", "noise", "--picture", "chelsea")[0] == 0
    assert [line[0] for line in shown[1][2]] == ["Denoising"]
    (folder / runs[1] / "recon/chelsea.png").write_bytes(b"")
    status, out, err = run("--limit", "2", "--tasks", "noise", "--picture", "chelsea")
    assert status == 2 and f"delete {folder / 'noise/dps'}" in err and "| Denoising | DPS" in out   # the table is shown


def test_costs_of_runs(run, tree, in_process):
    """Backward passes are one a step of DPS, two of TMPD; seconds are over those of DPS's run, for the same images."""
    costs = ["network_evaluations", "backward_passes", "relative_seconds", "peak_memory"]
    tree |= {"reference": "dps", "metrics": costs, "tasks": {"sr": tree["tasks"]["sr"]}, "paper": []}
    tree["methods"]["tmpd"] = {"title": "TMPD", "method": "tmpd", "params": {}}
    status, _, err = run("--limit", "2")
    assert status == 0, err
    folder = Path("results/tables/tiny")
    cells = {(row["metric"], row["method"]): row for row in read_csv(folder / "table.csv")}
    assert [float(cells["network_evaluations", name]["ours"]) for name in ("dps", "free", "tmpd")] == [2, 2, 2]
    assert [float(cells["backward_passes", name]["ours"]) for name in ("dps", "free", "tmpd")] == [2, 0, 4]
    dps, free = ([float(row["seconds"]) for row in read_csv(folder / f"sr/{path}/metrics.csv")]
                 for path in ("dps/super_resolution/ps", "free/super_resolution/vanilla"))
    assert float(cells["relative_seconds", "dps"]["ours"]) == 1
    assert float(cells["relative_seconds", "free"]["ours"]) == pytest.approx(sum(free) / sum(dps), rel=1e-4)
    assert float(cells["peak_memory", "free"]["ours"]) > 50 and cells["peak_memory", "free"]["against"] == ""
    (folder / "sr/free/super_resolution/vanilla/summary.json").unlink()
    assert run("--limit", "2", "--methods", "free")[0] == 0
    remarks = {row["metric"]: row["remark"] for row in read_csv(folder / "table.csv") if row["method"] == "free"}
    assert remarks["peak_memory"] == "summary.json has no peak memory" and "reference" in remarks["relative_seconds"]


def test_the_front_holds_what_nothing_beats(tree, monkeypatch):
    """Of three methods with seconds 1, 2, 3 times and PSNR 0, 1, 0.5 dB above the reference, the third is beaten; one
    that takes none has no place on an axis of ratios."""
    lines = []
    original = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **options: lines.append((args[1:], options)) or original(
        *args, **options))
    tree |= {"reference": "dps", "scatter": [["seconds", "psnr"]], "paper": [], "metrics": ["psnr", "seconds"]}
    tree["methods"] = {name: {"title": name, "method": "ps"} for name in ("dps", "good", "bad", "free")}
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    table = load_table("tiny.yaml")
    values = {"psnr": {"dps": 20.0, "good": 21.0, "bad": 20.5, "free": 30.0},
              "seconds": {"dps": 2.0, "good": 4.0, "bad": 6.0, "free": 0.0}}
    entries = [Entry(cell, None, Score(values[cell.metric][cell.method])) for cell in table.cells]
    picture = Image.open(io.BytesIO(scatter(table, entries, "seconds", "psnr")))
    assert picture.width > 600
    (x, y), _ = next(line for line in lines if line[1].get("label") == "Pareto front")
    assert (list(x), list(y)) == (pytest.approx([1, 2]), pytest.approx([0, 1]))
    with warnings.catch_warnings(action="error"):
        assert scatter(table, [], "seconds", "psnr")                    # no run is finished


def test_names_of_close_points_stand_apart_and_all_within_the_axes():
    axes = Figure(figsize=(6, 4)).subplots()
    points = {f"method {i}": (1 + 0.03 * (i % 2), 1 + 0.03 * (i // 2)) for i in range(4)} | {"far": (2.0, 2.0)}
    axes.margins(0.12)
    axes.plot(*zip(*points.values(), strict=True), "o")
    _label(axes, points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == sorted(points)
    assert all(box.count_overlaps(boxes) == 1 for box in boxes)         # itself
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    assert all(axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for box in boxes)
