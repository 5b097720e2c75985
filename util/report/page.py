"""The page of a report: a section per task, with pictures, scores, trajectories, spread and configuration."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from util.config.yaml_text import dump_yaml
from util.report.pictures import COLOURS, Pictures, coloured, deviation_map, error_map, plot, telling_crop
from util.report.runs import NETWORK, Run, Task, differences, read_curve
from util.report.tables import image_table, score_table
from util.run.layout import file_of
from util.run.table import Row

CAPTIONS = (("psnr", "{:.2f} dB"), ("chi_square", "chi-square {:.2f}"), ("distance", "distance {:.3g}"))

Figure = dict[str, object]                          # of the template: title, text, and src, alt, width, height if any


def page(title: str, tasks: Sequence[Task], pictures: Pictures, most: int) -> str:
    """The whole HTML file, with pictures of at most so many images per task; nothing is fetched from anywhere."""
    folder = Path(__file__).parent
    templates = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined,
                            trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"words": in_words, "yaml": lambda config: dump_yaml(config, width=100),
                          "facts": lambda facts: json.dumps({key: value for key, value in facts.items() if not
                                                             key.startswith("metrics")}, indent=2, ensure_ascii=False)}
    style, script = ((folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return templates.get_template("report.html").render(
        title=title, tasks=[section(task, pictures, most) for task in tasks], style=style, script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(), colours=COLOURS)


def section(task: Task, pictures: Pictures, most: int) -> dict[str, object]:
    """Everything about one task, as the template takes it."""
    images = list(dict.fromkeys(image for run in task.runs for image in run.images))
    shown = images[:most]
    curves = {number: curve for number, run in enumerate(task.runs) if (curve := read_curve(run)) is not None}
    return {
        "title": task.title, "runs": task.runs, "images": images, "shown": shown,
        "samples": max((len(run.of(image)) - 1 for run in task.runs for image in run.images[:1]), default=0),
        "differences": told_differences(task.runs), "same_images": len({frozenset(r.images) for r in task.runs}) == 1,
        "strips": [strip(image, task.runs, pictures) for image in shown],
        "tables": [score_table(task.runs), image_table(task.runs)], "plot": plot(curves) if curves else "",
        "curves": [(task.runs[n].label, n % len(COLOURS), *curve[1, [0, -1]]) for n, curve in curves.items()],
        "maps": [found for image in shown if (found := maps(image, task.runs, pictures))]}


def in_words(setting: object) -> str:
    """{"name": "gaussian", "sigma": 0.05} -> "gaussian (sigma 0.05)"."""
    if not isinstance(setting, dict):
        return json.dumps(setting, ensure_ascii=False).replace('"', "")
    rest = ", ".join(f"{name} {in_words(value)}" for name, value in setting.items() if name != "name")
    return " ".join([*([str(setting["name"])] if "name" in setting else []), *([f"({rest})"] if rest else [])])


def told_differences(runs: Sequence[Run]) -> dict[str, list[tuple[str, str]]]:
    """Setting -> (label, value) of the runs that have it, where they differ; a method's own stand in the labels."""
    told = {}
    for key, values in differences(runs).items():
        known = [(run.label, value) for run, value in zip(runs, values, strict=True)
                 if key[0] not in NETWORK or "checkpoint" in run.config]
        if key[0] != "conditioning" and len({value for _, value in known}) > 1:
            told[".".join(key)] = known
    return told


def strip(image: str, runs: Sequence[Run], pictures: Pictures) -> dict[str, object]:
    """A row of pictures: measurement, every method's restoration, truth."""
    own = [(run, run.shown(image)) for run in runs]
    first = next(row for _, row in own if row)
    lifted, label = (next((x for run, row in own if row and (x := pictures.load(file_of(run.path, folder, image)))
                           is not None), None) for folder in ("input", "label"))
    restored = [(run, row, pictures.load(run.picture(row)) if row else None) for run, row in own]
    figures = [figure("Measured", image, lifted, pictures, number(first.psnr_input, "{:.2f} dB"))]
    figures += [figure(run.label, image, x, pictures, caption(row) if row else "not restored yet")
                for run, row, x in restored]
    figures += [figure("Ground truth", image, label, pictures)] if label is not None else []
    crop = telling_crop([x for _, _, x in restored if x is not None], [x for x in (lifted, label) if x is not None])
    return {"image": image, "figures": figures, "crop": ",".join(f"{share:.4f}" for share in crop)}


def figure(title: str, image: str, x: Tensor | None, pictures: Pictures, text: str = "") -> Figure:
    """A picture with its title and a line of text."""
    if x is None:
        return {"title": title, "text": text, "src": ""}
    return {"title": title, "text": text, "src": pictures.source(x), "alt": f"{image}, {title}", "width": x.shape[2],
            "height": x.shape[1]}


def caption(row: Row) -> str:
    """How good a restoration is: PSNR, or, without truth, how it agrees with its measurement."""
    if not row.ok:
        return row.status
    return next((text for column, form in CAPTIONS if (text := number(getattr(row, column), form))), "")


def number(value: float, form: str) -> str:
    """A number in words, none where it is unknown."""
    return "" if math.isnan(value) else form.format(value)


def maps(image: str, runs: Sequence[Run], pictures: Pictures) -> dict[str, object] | None:
    """Of an image mean, standard deviation and error of the posterior samples, a group per method with several."""
    groups = [found for run in runs if (found := _maps_of(run, image, pictures))]
    if not groups:
        return None
    top = max(float(values.max()) for group in groups for _, _, picture, values in group if picture is None)
    return {"image": image, "top": f"{top:.2f}", "groups": [
        [figure(title, image, coloured(values, top) if picture is None else picture, pictures, text)
         for title, text, picture, values in group] for group in groups]}


def _maps_of(run: Run, image: str, pictures: Pictures) -> list[tuple[str, str, Tensor | None, Tensor]]:
    """Title, text, picture and, where that is None, the values of each map; none for fewer than two samples."""
    *rows, last = run.of(image) or [None]
    if len(rows) < 2:                                                   # and their mean
        return []
    samples = [x for row in rows if (x := pictures.load(run.picture(row))) is not None]
    mean, label = pictures.load(run.picture(last)), pictures.load(file_of(run.path, "label", image))
    if len(samples) < 2 or mean is None or len({tuple(x.shape) for x in samples}) > 1:
        return []
    found = [(f"{run.label}, mean of {len(samples)}", caption(last), mean, mean),
             (f"{run.label}, deviation", number(last.std, "rms {:.3f}"), None, deviation_map(samples))]
    if label is not None and label.shape == mean.shape:
        found.append((f"{run.label}, error of mean", number(last.error_to_std, "{:.2f} deviations"), None,
                      error_map(mean, label)))
    return found
