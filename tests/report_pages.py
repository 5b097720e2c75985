"""The page that `python -m util.report` writes, taken apart, and folders of runs for it."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import yaml

from tests.helpers import picture
from util.run.layout import CONFIG, SUMMARY, TABLE, file_of, sample_names
from util.run.table import NUMBERS, Row, to_csv

SETTINGS = {"conditioning": {"method": "x"}, "seed": 0, "checkpoint": "0123456789abcdef",
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
    def pictures(self) -> list[dict[str, str]]:
        """The images, without plots."""
        return [image for image in self.all("img") if "class" not in image]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def make_run(results: Path, task: str = "inpainting", method: str = "ps", images: tuple[str, ...] = ("a", "b", "c"),
             samples: int = 1, truth: bool = True, curves: bool = False, summary: bool = True, status: str = "ok",
             **settings) -> Path:
    """A run's folder as sample_condition.py leaves it, with invented numbers; of several samples the last fits best."""
    path = results / task / method
    path.mkdir(parents=True)
    rng, rows = np.random.default_rng(len(method)), []
    for i, image in enumerate(images):
        for k, sample in enumerate(sample_names(samples)):
            figures = dict(zip(NUMBERS, rng.uniform(10, 30, len(NUMBERS)), strict=True))
            hidden = ["error_to_std", "lpips_vgg", *(() if truth else ("psnr", "ssim", "psnr_input", "ssim_input"))]
            figures |= dict.fromkeys([name for name in NUMBERS if "aligned" in name or name in hidden], math.nan)
            figures["best"] = math.nan if sample == "mean" else float(k == samples - 1)
            rows.append(Row(image, sample, **figures, status=status))
            picture(file_of(path, "recon", image, sample if samples > 1 else None), 10 * i + k, SIZE)
        picture(file_of(path, "input", image), i, SIZE)
        if truth:
            picture(file_of(path, "label", image), 100 + i, SIZE)
        if curves:
            (path / "trajectories").mkdir(exist_ok=True)
            lines = [["step", *map(str, range(samples))], *([s, *[f"{s + 2.5}"] * samples] for s in (2, 1, 0))]
            file_of(path, "trajectories", image).write_text("".join(",".join(map(str, c)) + "\n" for c in lines))
    (path / TABLE).write_text(to_csv(rows), encoding="utf-8")
    (path / CONFIG).write_text(yaml.safe_dump({**SETTINGS, **settings}))
    if summary:
        (path / SUMMARY).write_text(json.dumps({"device": "CPU", "seed": 0, "metrics": {}}))
    return path
