"""A reproduced table as text, with its circumstances: paper | ours +- interval | difference, Markdown, LaTeX, CSV."""

import json
import math
import re
from collections.abc import Sequence

from util.files import csv_text
from util.logger import aligned, count
from util.metrics.names import metric_of
from util.reproduce_table.job import Job
from util.reproduce_table.scores import Entry
from util.reproduce_table.spec import PaperTable
from util.run.table import read_summary

LABELS = 2                                          # columns of words, task and method; numbers stand at the right
FEW = 10                                            # images, from which a bootstrap interval is about what it says
EXCLUDED = " *"                                     # behind a difference whose interval excludes the paper's figure
COLUMNS = ("metric", "task", "method", "paper", "paper_std", "source", "ours", "ci95_low", "ci95_high", "difference",
           "excludes_paper", "against", "against_low", "against_high", "images", "seed", "prior", "task_config",
           "conditioning", "noise", "steps", "folder", "remark")
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
           **{character: f"\\{character}" for character in "&%$#_{}"}}        # characters of LaTeX
ARROWS = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}


def markdown(table: PaperTable, entries: Sequence[Entry]) -> str:
    """The whole table as Markdown, with aligned columns so that it reads well as plain text, too."""
    parts = [f"# {table.spec.title}\n"]
    for metric in table.spec.metrics:
        own = [entry for entry in entries if entry.cell.metric == metric]
        if own:
            parts.append(f"## {metric_of(metric).heading}\n\n{_section(table, own)}")
    return "\n".join([*parts, _circumstances(table, entries)])


def _section(table: PaperTable, entries: Sequence[Entry]) -> str:
    """The lines of one metric, and what there is to remark on them."""
    compared = any(entry.cell.paper for entry in entries)
    remarks = "".join(f"- {remark}\n" for remark in _remarks(table, entries))
    if not compared and all(math.isnan(entry.score.value) for entry in entries):
        return remarks
    versus = f"against {table.methods[table.spec.reference].title}" if table.spec.reference else "against"
    header = ["task", "method", "paper", "ours ± 95 %", "difference", versus, "images"]
    lines, previous = [header], None
    for entry in entries:
        cell, metric = entry.cell, metric_of(entry.cell.metric)
        mark = EXCLUDED if entry.excludes_paper else ""
        lines.append([table.tasks[cell.task].title if cell.task != previous else "", table.methods[cell.method].title,
                      _paper(entry), _ours(table, entry),
                      "" if math.isnan(entry.difference) else f"{metric.words(entry.difference, '+')}{mark}",
                      _against(entry), str(entry.score.images or "")])
        previous = cell.task
    hidden = {*(() if compared else ("paper", "difference")), *(() if table.spec.reference else ("against",))}
    shown = [i for i, title in enumerate(header) if title not in hidden]
    return "\n".join([_align([[line[i] for i in shown] for line in lines]), *([remarks] if remarks else [])])


def _remarks(table: PaperTable, entries: Sequence[Entry]) -> list[str]:
    """Why figures are missing, with the run's name unless it is so for all of them."""
    where: dict[str, list[str]] = {}
    for entry in entries:
        if entry.score.remark:
            where.setdefault(entry.score.remark, []).append(table.title(entry.cell))
    runs = sum(entry.job is not None for entry in entries)
    return [remark if len(titles) == runs else f"{'; '.join(titles)}: {remark}" for remark, titles in where.items()]


def _paper(entry: Entry) -> str:
    figure = entry.cell.paper
    if figure is None:
        return ""
    return f"{figure.value:g}" if figure.std is None else f"{figure.value:g} ± {figure.std:g} (std)"


def _ours(table: PaperTable, entry: Entry) -> str:
    if entry.job is None:
        return "not run" if table.methods[entry.cell.method].method else "paper only"
    return "none" if math.isnan(entry.score.value) else _with_interval(entry)


def _against(entry: Entry) -> str:
    """The difference from the reference, marked where its interval excludes 0."""
    found, words = entry.against, metric_of(entry.cell.metric).words
    if math.isnan(found.value):
        return ""
    if math.isnan(found.low):
        return words(found.value, "+")
    mark = EXCLUDED if found.low > 0 or found.high < 0 else ""
    return f"{words(found.value, '+')} ± {words((found.high - found.low) / 2)}{mark}"


def _with_interval(entry: Entry) -> str:
    score, words = entry.score, metric_of(entry.cell.metric).words
    half = "" if math.isnan(score.low) else f" ± {words((score.high - score.low) / 2)}"
    return f"{words(score.value)}{half}"


def _align(lines: list[list[str]]) -> str:
    lines = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    rule = ["---" if i < LABELS else "--:" for i in range(len(lines[0]))]
    return "".join(f"| {line} |\n" for line in aligned([lines[0], rule, *lines[1:]], LABELS, " | "))


def _circumstances(table: PaperTable, entries: Sequence[Entry]) -> str:
    """What stands underneath: how to read it, sources, images, seed, prior, and the settings of every run."""
    jobs = list({id(entry.job): entry.job for entry in entries if entry.job}.values())
    sources = dict.fromkeys(entry.cell.paper.source.rpartition(", row ")[0] for entry in entries if entry.cell.paper)
    few = min((entry.score.images for entry in entries if not math.isnan(entry.score.low)), default=FEW) < FEW
    lines = ["± is half the width of the 95 % bootstrap interval over images"
             f"{f', which is too narrow for fewer than {FEW} (docs/metrics.md)' if few else ''}."]
    if sources:
        lines.append(f"`{EXCLUDED.strip()}`: the interval excludes the paper's figure. \"paper only\": the method is "
                     "not implemented here; \"not run\": it was not asked for.")
    if table.spec.reference:
        lines.append(f"\"against {table.methods[table.spec.reference].title}\": the mean of the differences from it, "
                     f"image by image, with its interval; `{EXCLUDED.strip()}`: that excludes 0.")
    lines += [*(f"Figures of the paper: {source}." for source in sources), *filter(None, [table.spec.note.strip()])]
    if jobs:
        options = jobs[0].options
        priors = dict.fromkeys(f"{job.config.prior} ({job.config.model.get('model_path')})" for job in jobs)
        devices = dict.fromkeys(str((read_summary(job.path) or {}).get("device", "unknown")) for job in jobs
                                if not job.failed)
        best = " (the one of lowest measurement error counts)" if options.num_samples > 1 else ""
        images, listed = max(len(job.names) for job in jobs), jobs[0].config.data.params.get("list")
        lines.append(f"Seed {options.seed}; images: {options.data or 'as each task file says'}"
                     f"{f' ({listed})' if listed else ''}, {images} asked for; "
                     f"samples per image: {options.num_samples}{best}; "
                     f"prior: {', '.join(priors)}, network in {options.precision}; "
                     f"device: {', '.join(devices)}.")
        lines.append("Runs:\n\n" + "\n".join(f"- {_settings(table, job)}" for job in jobs))
    return "".join(f"\n{line}\n" for line in lines)


def _settings(table: PaperTable, job: Job) -> str:
    error = f"; FAILED: {job.error}" if job.failed else f"; {job.error}" if job.error else ""
    return (f"{table.title(job.run)}: {job.run.task_config}, {_choice(job.config.conditioning)}, "
            f"noise {_choice(job.config.noise)}, {count(job.steps, 'step')}, {count(len(job.rows()), 'image')}{error}")


def _choice(choice) -> str:
    return f"{choice.name} {json.dumps(choice.params, default=list)}"


def latex(table: PaperTable, entries: Sequence[Entry]) -> str:
    """A tabular for booktabs as papers print it: a row per method, ours and the paper's, tasks and metrics across.

    The best of our means in each column is bold.
    """
    found = {(e.cell.method, e.cell.task, e.cell.metric): e for e in entries}
    places = [(task, metric) for task in table.tasks for metric in table.spec.metrics
              if any(key[1:] == (task, metric) for key in found)]
    tasks = [(task, sum(place[0] == task for place in places)) for task in dict(places)]
    heads = [_tex(metric_of(metric).title) + ARROWS[metric_of(metric).better] for _, metric in places]
    lines = [["", *(rf"\multicolumn{{{n}}}{{c}}{{{_tex(table.tasks[task].title)}}}" for task, n in tasks)],
             ["Method", *heads]]
    for method in table.methods:
        own = [found.get((method, *place)) for place in places]
        title = _tex(table.methods[method].title)
        if any(e and not math.isnan(e.score.value) for e in own):
            lines.append([title, *(_tex_score(e, entries) if e else "" for e in own)])
        if any(e and e.cell.paper for e in own):
            lines.append([f"{title} (paper)", *(f"{e.cell.paper.value:g}" if e and e.cell.paper else "" for e in own)])
    text = [" & ".join(line) + r" \\" for line in lines]
    rules = [r"\toprule", text[0], text[1], r"\midrule", *text[2:], r"\bottomrule"]
    return "\n".join([f"% {table.spec.title}; our means with half of the 95 % interval. Needs booktabs.",
                      rf"\begin{{tabular}}{{l{'r' * len(places)}}}", *rules, r"\end{tabular}", ""])


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, SPECIAL)), lambda found: SPECIAL[found[0]], text)


def _tex_score(entry: Entry, entries: Sequence[Entry]) -> str:
    """Our figure, bold if no other method of ours has a better one in this place."""
    better = metric_of(entry.cell.metric).better
    if math.isnan(entry.score.value):
        return ""
    rivals = [e.score.value for e in entries if (e.cell.task, e.cell.metric) == (entry.cell.task, entry.cell.metric)]
    best = better and len(rivals) > 1 and better * entry.score.value >= max(better * v for v in rivals if v == v)
    text = _with_interval(entry).replace("±", r"\pm")
    return rf"$\mathbf{{{text}}}$" if best else f"${text}$"


def to_csv(entries: Sequence[Entry]) -> str:
    """A line per cell: the paper's figure and its source, ours, and what was run."""
    lines: list[list[object]] = [list(COLUMNS)]
    for entry in entries:
        cell, paper, job, found = entry.cell, entry.cell.paper, entry.job, entry.score
        run = [""] * 7 if job is None else [
            job.options.seed, job.config.prior, job.run.task_config, _choice(job.config.conditioning),
            _choice(job.config.noise), job.steps, job.path]
        figures = [paper.value, _number(paper.std), paper.source] if paper else [""] * 3
        lines.append([cell.metric, cell.task, cell.method, *figures, _number(found.value), _number(found.low),
                         _number(found.high), _number(entry.difference),
                         int(entry.excludes_paper) if paper and not math.isnan(found.low) else "",
                         *(_number(value) for value in (entry.against.value, entry.against.low, entry.against.high)),
                         found.images if job else "", *run, found.remark if job else "not run"])
    return csv_text(lines)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"
