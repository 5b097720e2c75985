"""The page of a report: a section per task, with pictures, scores, trajectories, spread and configuration."""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from util.config.yaml_text import dump_yaml
from util.report.data import MEAN, Cells, Run, differences, number, read_curve, remark
from util.report.figures import (
    Pictures,
    coloured,
    deviation_map,
    error_map,
    fixed_crop,
    key,
    plot,
    telling_crop,
)
from util.report.markup import Markup, element, join
from util.report.place import GENERATOR
from util.report.tables import image_table, score_table

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class View:
    """What of a run's images a page shows."""

    images: int                                     # per task
    crop: tuple[int, int, int] | None               # left, top and side in pixels; None for where methods differ most


def page(title: str, runs: Sequence[Run], pictures: Pictures, view: View) -> str:
    """The whole HTML file; nothing in it is fetched from anywhere."""
    tasks = list(dict.fromkeys(run.task for run in runs))
    sections = [task_section(f"task-{i}", task, [run for run in runs if run.task == task], pictures, view)
                for i, task in enumerate(tasks)]
    style, script = ((FOLDER / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (f"default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'; "
              f"script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'")
    links = [element("a", {"href": f"#task-{i}"}, task_title(task)) for i, task in enumerate(tasks)]
    head = element(
        "head", {}, element("meta", {"charset": "utf-8"}),
        element("meta", {"name": "generator", "content": GENERATOR}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("title", {}, title), element("style", {}, Markup(style)))
    intro = element(
        "header", {}, element("h1", {}, title),
        element("p", {"class": "note"}, "Click a picture, or drag a square in it, to choose the crop that is magnified "
                "below all pictures of its row; arrow keys move it, + and - change its size. Click a column's title to "
                "sort by it."),
        *[element("nav", {"aria-label": "Tasks"}, *links)] * (len(tasks) > 1))
    body = element("body", {}, intro, element("main", {}, *sections), element("script", {}, Markup(script)))
    return f"<!DOCTYPE html>\n{element('html', {'lang': 'en'}, head, body)}\n"


def task_title(task: str) -> str:
    """Words for a task's folder: "sr/gaussian_blur" -> "Sr / gaussian blur"."""
    words = task.replace("_", " ").replace("/", " / ")
    return words[:1].upper() + words[1:]


def task_section(identifier: str, task: str, runs: Sequence[Run], pictures: Pictures, view: View) -> Markup:
    """Everything about one task."""
    images = list(dict.fromkeys(image for run in runs for image in run.images))
    shown = images[:view.images]
    parts = [element("h2", {"id": identifier}, task_title(task)), *_about(runs, len(images), len(shown))]
    if shown:
        several = any(len(run.of(run.images[0])) > 1 for run in runs if run.images)
        note = element("p", {"class": "note"}, "Of the posterior samples of an image, the one that fits its "
                       "measurement best (lowest distance; the truth plays no part).")
        parts += [element("h3", {}, "Restorations"), *[note] * several,
                  *(strip(image, runs, pictures, view) for image in shown)]
        parts += [element("h3", {}, "Scores"), score_table(runs), image_table(runs)]
    parts += [*_trajectories(task, runs), *_uncertainty(shown, runs, pictures), *_configurations(runs)]
    return element("section", {"aria-labelledby": identifier}, *parts)


def _about(runs: Sequence[Run], images: int, shown: int) -> list[Markup]:
    """What was measured, and what a reader has to know before comparing."""
    notes = []
    measured = [run.config.get("measurement") for run in runs]
    if isinstance(measured[0], dict) and all(m == measured[0] for m in measured):
        notes.append(element("p", {"class": "note"}, "; ".join(
            f"{kind}: {_in_words(measured[0][kind])}" for kind in ("operator", "noise") if kind in measured[0])))
    same = {name: values.pop() for name in ("num_samples", "seed")
            if len(values := {run.config.get(name) for run in runs}) == 1}
    samples = f", {same['num_samples']} posterior samples each" if same.get("num_samples", 1) not in (None, 1) else ""
    seed = f", seed {same['seed']}" if same.get("seed") is not None else ""
    notes.append(element("p", {"class": "note"}, f"{images} image{'s' * (images != 1)}{samples}{seed}"
                         f"{f'; the first {shown} are shown' if shown < images else ''}."))
    warnings = [f"The runs differ in {name}: " + ", ".join(
        f"{value} ({run.method})" for run, value in zip(runs, values, strict=True)) + "."
        for name, values in differences(runs).items()]
    if len({frozenset(run.images) for run in runs}) > 1:
        warnings.append("The methods have restored different images so far: " + ", ".join(
            f"{len(run.images)} ({run.method})" for run in runs) + ". Their means are not comparable.")
    warnings += [f"{run.method} has not come to its end: it has no summary.json." for run in runs if not run.facts]
    diverged = {run.method: sum(bool(remark(row)) for row in run.rows) for run in runs}
    warnings += [f"{count} restoration{'s' * (count > 1)} by {method} diverged and count{'s' * (count == 1)} nowhere."
                 for method, count in diverged.items() if count]
    return [*notes, *(element("p", {"class": "warn"}, warning) for warning in warnings)]


def _in_words(setting: object) -> str:
    """{"name": "gaussian", "sigma": 0.05} -> "gaussian (sigma 0.05)"."""
    if not isinstance(setting, dict):
        return json.dumps(setting, ensure_ascii=False).replace('"', "")
    rest = ", ".join(f"{name} {_in_words(value)}" for name, value in setting.items() if name != "name")
    return f"{setting['name']}{f' ({rest})' if rest else ''}" if "name" in setting else f"({rest})"


def strip(image: str, runs: Sequence[Run], pictures: Pictures, view: View) -> Markup:
    """A row of pictures: measurement, every method's restoration, truth."""
    own = [(run, run.shown(image)) for run in runs]
    lifted, label = (next((x for run, row in own if row and (x := pictures.load(run.file(folder, image))) is not None),
                          None) for folder in ("input", "label"))
    restored = [(run, row, pictures.load(run.file("recon", image, row["sample"])) if row else None) for run, row in own]
    cells = [_figure("Measurement", image, lifted, pictures, _score(next(row for _, row in own if row), "psnr_input"))]
    cells += [_figure(run.method, image, x, pictures, caption(row) if row else "not restored yet")
              for run, row, x in restored]
    cells += [_figure("Ground truth", image, label, pictures, "")] * (label is not None)
    others = [x for x in (lifted, label) if x is not None]
    found = [x for _, _, x in restored if x is not None]
    crop = telling_crop(found, others)
    if view.crop is not None and [*found, *others]:
        crop = fixed_crop(*view.crop, [*found, *others][0].shape)
    attributes = {
        "class": "strip", "style": f"--columns: {len(cells)}", "data-crop": ",".join(f"{share:.4f}" for share in crop),
        "tabindex": 0, "role": "group", "aria-label": f"{image}: the arrow keys move the crop, + and - resize it"}
    return join(element("p", {"class": "name"}, image), element("div", attributes, *cells))


def _figure(title: str, image: str, x: Tensor | None, pictures: Pictures, text: str, kind: str = "picture") -> Markup:
    below = element("figcaption", {}, element("b", {}, title), *[element("span", {}, text)] * bool(text))
    if x is None:
        return element("figure", {}, element("div", {"class": "absent"}, "no picture"), below)
    attributes = {"src": pictures.source(x), "alt": f"{image}, {title}", "width": x.shape[2], "height": x.shape[1]}
    return element("figure", {}, element("div", {"class": kind}, element("img", attributes)), below)


def caption(row: Cells) -> str:
    """How good a restoration is: PSNR, or, without truth, how it agrees with its measurement."""
    if remark(row):
        return remark(row)
    for column, form in (("psnr", "{:.2f} dB"), ("chi_square", "chi-square {:.2f}"), ("distance", "distance {:.3g}")):
        if not math.isnan(value := number(row, column)):
            return form.format(value)
    return ""


def _score(row: Cells, column: str) -> str:
    value = number(row, column)
    return "" if math.isnan(value) else f"{value:.2f} dB"


def _trajectories(task: str, runs: Sequence[Run]) -> list[Markup]:
    """The measurement distance over the steps, where runs have kept it."""
    found = {run.method: read_curve(run, run.images) for run in runs}
    curves = {method: curve for method, curve in found.items() if curve is not None}
    if not curves:
        return []
    colours = {method: i for i, method in enumerate(found)}
    label = f"Measurement distance over the steps of {task_title(task)}: " + "; ".join(
        f"{method} from {curve.mean[0]:.3g} to {curve.mean[-1]:.3g}" for method, curve in curves.items())
    return [element("h3", {}, "Measurement distance"),
            key({method: colours[method] for method in curves}), plot(curves, colours, label),
            element("p", {"class": "note"}, "Distance between the measurement and that of each step's prediction of "
                    "the clean image, on a logarithmic axis: mean over images and samples, and in the bands the "
                    "middle 80 % of them.")]


def _uncertainty(images: Sequence[str], runs: Sequence[Run], pictures: Pictures) -> list[Markup]:
    """Mean of the posterior samples, their standard deviation and the mean's error, where there are several."""
    strips = [markup for image in images if (markup := _maps(image, runs, pictures))]
    return [element("h3", {}, "Standard deviation of the posterior samples"),
            element("p", {"class": "note"}, "In each row all maps share one scale on [0, 1], root mean square over "
                    "colours. Where the samples are as uncertain as they should be, both are alike on average."),
            *strips] if strips else []


def _maps(image: str, runs: Sequence[Run], pictures: Pictures) -> Markup | None:
    """The maps of an image, a group per method."""
    groups: list[list[tuple[str, str, Tensor | None, Tensor]]] = []     # title, text, picture or else values
    for run in runs:
        rows = run.of(image)
        if len(rows) < 3:                                               # two samples and their mean
            continue
        loaded = {row["sample"]: pictures.load(run.file("recon", image, row["sample"])) for row in rows}
        samples = [x for sample, x in loaded.items() if sample != MEAN and x is not None]
        mean, label = loaded.get(MEAN), pictures.load(run.file("label", image))
        if len(samples) < 2 or mean is None or len({tuple(x.shape) for x in samples}) > 1:
            continue
        row = next(row for row in rows if row["sample"] == MEAN)
        group = [(f"{run.method}, mean of {len(samples)}", caption(row), mean, mean),
                 (f"{run.method}, deviation", _measure(row, "std", "rms {:.3f}"), None, deviation_map(samples))]
        if label is not None and label.shape == mean.shape:
            group.append((f"{run.method}, error of mean", _measure(row, "error_to_std", "{:.2f} deviations"), None,
                          error_map(mean, label)))
        groups.append(group)
    if not groups:
        return None
    top = max(float(values.max()) for group in groups for _, _, picture, values in group if picture is None)
    strips = [element("div", {"class": "strip", "style": f"--columns: {len(group)}"}, *(
        _figure(title, image, coloured(values, top) if picture is None else picture, pictures, text, "plain")
        for title, text, picture, values in group)) for group in groups]
    scale = element("small", {}, "0", element("span", {"class": "scale"}), f"{top:.2f}")
    return join(element("p", {"class": "name"}, f"{image} ", scale), element("div", {"class": "maps"}, *strips))


def _measure(row: Cells, column: str, form: str) -> str:
    return "" if math.isnan(value := number(row, column)) else form.format(value)


def _configurations(runs: Sequence[Run]) -> list[Markup]:
    """Settings and circumstances of each run, folded away."""
    parts = [element("h3", {}, "Configuration")]
    for run in runs:
        circumstances = {name: value for name, value in run.facts.items() if not name.startswith("metrics")}
        text = dump_yaml(run.config, width=100) if run.config else "none\n"
        parts.append(element(
            "details", {}, element("summary", {}, f"{run.method}: configuration and circumstances"),
            element("p", {"class": "note"}, f"config.yaml of {run.path}"), element("pre", {}, text),
            *[element("p", {"class": "note"}, "summary.json"),
              element("pre", {}, json.dumps(circumstances, indent=2, ensure_ascii=False))] * bool(circumstances)))
    return parts
