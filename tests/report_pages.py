"""The page that `python -m util.report` writes, taken apart, and folders of runs for it."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml

from tests.helpers import picture

COLUMNS = ["image", "sample", "psnr", "ssim", "psnr_input", "ssim_input", "distance", "seconds", "chi_square", "best",
           "std", "error_to_std", "status"]
CONFIG = {"conditioning": {"method": "x"}, "seed": 0,
          "measurement": {"operator": {"name": "inpainting"}, "noise": {"name": "gaussian", "sigma": 0.05}}}
VOID = {"img", "meta", "br", "col", "link", "input", "hr"}
SIZE = (32, 32)                             # of restorations


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
            picture(path / "recon" / (f"{image}_{sample}.png" if samples > 1 else f"{image}.png"), 10 * i + k, SIZE)
        picture(path / "input" / f"{image}.png", i, SIZE)
        if truth:
            picture(path / "label" / f"{image}.png", 100 + i, SIZE)
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
