"""Image quality on float images, never on stretched ones: PSNR and SSIM (scikit-image), LPIPS (`lpips`, VGG16 and
AlexNet), FID and KID (torchmetrics).

As a command it scores the images of two folders, or a results folder: `python -m util.compute_metric A [B]`.
"""

import csv
import io
import json
import math
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from tqdm import tqdm

from util.command import Parser, choose_device, run_command, run_program
from util.errors import UserError, did_you_mean
from util.image_pairs import MEAN, Pair, pair_folders, pair_results, read_table
from util.img_utils import load_image, to_uint8, to_unit, write_atomically
from util.logger import get_logger
from util.perceptual import EXTRACTOR, LPIPS_MIN_SIDE, frechet_distance, kernel_distance, load_networks
from util.statistics import describe
from util.user_path import user_path
from util.weights import WeightStore


@dataclass(frozen=True)
class Scores:
    """How close a restored image is to the true one; NaN where a metric does not apply."""

    psnr: float                                     # dB, infinite for equal images
    ssim: float                                     # at most 1
    lpips_vgg: float                                # 0 for equal images
    lpips_alex: float = float("nan")


TITLES = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 4), "lpips_vgg": ("LPIPS (vgg)", 4),
          "lpips_alex": ("LPIPS (alex)", 4), "fid": ("FID", 2), "kid": ("KID", 5)}      # and how many decimals to print
PER_IMAGE = tuple(field.name for field in fields(Scores))


def psnr(restored: Tensor, label: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of an image (3, H, W) in [-1, 1], clamped and scored on [0, 1]."""
    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(_array(label), _array(restored), data_range=1.0))


def ssim(restored: Tensor, label: Tensor) -> float:
    """Structural similarity (Wang et al., 2004) of an image (3, H, W) in [-1, 1], clamped and scored on [0, 1].

    scikit-image's defaults: uniform 7 x 7 windows, mean over the channels. Images of 3 to 6 pixels get the largest odd
    window that fits; for smaller ones it is NaN.
    """
    side = min(label.shape[1:])
    if side < 3:
        return float("nan")
    window = min(7, side - 1 + side % 2)
    return float(structural_similarity(
        _array(label), _array(restored), data_range=1.0, channel_axis=0, win_size=window))


def _array(x: Tensor) -> np.ndarray:
    return to_unit(x.detach()).cpu().double().numpy()


class Metrics:
    """PSNR, SSIM and, where their networks can be had, LPIPS and the features that FID and KID compare.

    Args:
        device: where the networks run.
        weights_dir: a folder with the networks' files, see `util.weights`; torch's hub folder when None.
        networks: which of `util.perceptual.NETWORKS` to load; one warning names those that cannot be had.

    Raises:
        UserError: `weights_dir` is not there.
    """

    def __init__(self, device: torch.device | str = "cpu", weights_dir: str | Path | None = None,
                 networks: Sequence[str] = ("lpips_vgg", "lpips_alex")):
        self.device = torch.device(device)
        self.networks = load_networks(networks, WeightStore(weights_dir), self.device)

    def __call__(self, restored: Tensor, label: Tensor) -> Scores:
        """Score an image (3, H, W) in [-1, 1] against the true one of the same shape."""
        assert restored.shape == label.shape and label.dim() == 3, (restored.shape, label.shape)
        return Scores(psnr(restored, label), ssim(restored, label),
                      self._lpips("lpips_vgg", restored, label), self._lpips("lpips_alex", restored, label))

    @torch.no_grad()
    def _lpips(self, name: str, restored: Tensor, label: Tensor) -> float:
        if name not in self.networks or min(label.shape[1:]) < LPIPS_MIN_SIDE[name]:
            return float("nan")
        pair = [x[None].to(self.device, torch.float32).clamp(-1, 1) for x in (restored, label)]
        return float(self.networks[name](*pair))

    def features(self, x: Tensor) -> Tensor | None:
        """The features (D,) of an image (3, H, W) in [-1, 1], on the CPU; None without the network.

        The network was defined on 8-bit images, so `x` is rounded to 8 bits, as in the saved file.
        """
        if "inception" not in self.networks:
            return None
        levels = torch.from_numpy(to_uint8(x)).permute(2, 0, 1)[None].to(self.device)
        return self.networks["inception"](levels)[0].cpu()


@dataclass
class Comparison:
    """Scores of pairs of files, and the features of those that are no means of samples."""

    rows: list[tuple[str, str, Scores]] = field(default_factory=list)               # image, sample, its scores
    real: dict[str, Tensor] = field(default_factory=dict)                           # image -> (D,)
    restored: dict[tuple[str, str], Tensor] = field(default_factory=dict)           # (image, sample) -> (D,)
    skipped: int = 0

    def add(self, pair: Pair, metrics: Metrics, per_image: bool) -> None:
        """Score a pair; `per_image` includes PSNR, SSIM and LPIPS. UserError if it cannot be scored."""
        restored, label = load_image(pair.restored), load_image(pair.label)
        if restored.shape != label.shape:
            sizes = " and ".join(f"{x.shape[2]} x {x.shape[1]}" for x in (restored, label))
            raise UserError(f"{pair.restored} and {pair.label} differ in size ({sizes})")
        if per_image:
            self.rows.append((pair.image, pair.sample, metrics(restored, label)))
        features = metrics.features(restored) if pair.sample != MEAN else None
        if features is not None:
            self.restored[pair.image, pair.sample] = features
            self.real[pair.image] = self.real[pair.image] if pair.image in self.real else metrics.features(label)

    def summary(self, names: Sequence[str]) -> dict[str, object]:
        """Mean, standard deviation, count and interval of each score in `names`; FID and KID with their images."""
        single, means = ([row for row in self.rows if (row[1] == MEAN) is is_mean] for is_mean in (False, True))
        summary: dict[str, object] = {"images": len({row[0] for row in self.rows}), "skipped": self.skipped,
                                      "metrics": _summarise(single, names)}
        if means:
            summary["metrics_of_sample_means"] = _summarise(means, names)
        return summary | self.distances(names)

    def distances(self, names: Sequence[str]) -> dict[str, dict[str, object]]:
        """FID and KID, where they are in `names`, with extractor and numbers of images; None without features."""
        real, restored = (torch.stack([*x.values()]) if x else torch.empty(0, 0) for x in (self.real, self.restored))
        values = {name: distance(real, restored) for name, distance in (("fid", frechet_distance),
                                                                        ("kid", kernel_distance)) if name in names}
        return {name: {"value": value if math.isfinite(value) else None, "extractor": EXTRACTOR,
                       "images": len(restored), "reference_images": len(real)} for name, value in values.items()}


def _summarise(rows: Sequence[tuple[str, str, Scores]], names: Sequence[str]) -> dict[str, object]:
    images = [image for image, _, _ in rows]
    return {name: describe([getattr(scores, name) for _, _, scores in rows], images)
            for name in PER_IMAGE if name in names}


def compare(pairs: Iterable[Pair], metrics: Metrics, per_image: bool = True, progress: bool = True) -> Comparison:
    """Score pairs of files; those that cannot be scored are named in warnings, counted and passed over."""
    comparison = Comparison()
    for pair in tqdm(pairs, desc="Scoring", leave=False, disable=not (progress and sys.stderr.isatty())):
        try:
            comparison.add(pair, metrics, per_image)
        except UserError as error:
            comparison.skipped += 1
            get_logger().warning(f"{error}; passed over")
    return comparison


def _table_scores(rows: Sequence[dict[str, str]]) -> list[tuple[str, str, Scores]]:
    try:
        return [(row["image"], row["sample"], Scores(*(float(row.get(name) or "nan") for name in PER_IMAGE)))
                for row in rows]
    except ValueError as error:
        raise UserError(f"metrics.csv: {error}; --from_png scores the saved files instead") from None


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TITLES:
            raise ArgumentTypeError(f"unknown metric '{name}'; {did_you_mean(name, TITLES)}")
    return names


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; UserError for a mistake in it."""
    parser = Parser(prog="python -m util.compute_metric", allow_abbrev=False, description=(
        "Score restored images against true ones, paired by file name; exit status 1 if some could not be scored."))
    add = parser.add_argument
    add("restored", metavar="A", help="folder of restored images; or, alone, a results folder (recon/ against label/)")
    add("labels", metavar="B", nargs="?", help="folder of true images")
    add("--from_png", action="store_true", help="of a results folder, score the saved files, "
        "in place of what metrics.csv says of the images before they were rounded to 8 bits")
    add("--metrics", type=_names, default=list(TITLES), metavar="NAME,...", help=f"default: {','.join(TITLES)}")
    add("--weights_dir", metavar="FOLDER", help="holds the networks' weights; nothing is fetched then")
    add("--save_dir", metavar="FOLDER", help="where scores.json and scores.csv go; default: the results folder, if one")
    add("--gpu", type=int, metavar="N", help="index of the GPU; default: GPU 0, or the CPU where there is none")
    return parser.parse(argv)


def score(args: Namespace) -> int:
    """Do what the command line asks for and return the exit status."""
    device = choose_device(args.gpu)
    rows = read_table(args.restored) if args.labels is None else []
    pairs, missing = (pair_results(args.restored, rows) if args.labels is None
                      else pair_folders(args.restored, args.labels))
    for line in missing:
        get_logger().warning(line)
    from_files = args.from_png or not rows
    networks = [name for name in ("lpips_vgg", "lpips_alex") if name in args.metrics and from_files]
    networks += ["inception"] if {"fid", "kid"} & set(args.metrics) else []
    metrics = Metrics(device, args.weights_dir, networks)
    comparison = compare(pairs if from_files or metrics.networks else [], metrics, per_image=from_files)
    if not from_files:
        comparison.rows = _table_scores(rows)
    if not comparison.rows:
        raise UserError("no image could be scored")
    source = "saved files" if from_files else "metrics.csv"
    summary = {"restored": args.restored, "labels": args.labels or "label", "source": source,
               **comparison.summary(args.metrics)}
    log_summary(summary)
    if equal := sum(math.isinf(scores.psnr) for *_, scores in comparison.rows):
        get_logger().warning(f"{equal} of {len(comparison.rows)} pairs are equal: their PSNR is infinite, and no part "
                             "of its mean")
    folder = args.save_dir or (args.restored if args.labels is None else None)
    if folder:
        _save(user_path(folder), comparison, summary)
    if comparison.skipped:
        get_logger().error(f"{comparison.skipped} of {len(pairs)} pairs could not be scored")
    return 1 if comparison.skipped or missing else 0


def log_summary(summary: dict) -> None:
    """Log a table: a line per score with its mean and interval over the images, then FID and KID of the set."""
    log = get_logger().info
    of_means = "metrics_of_sample_means" in summary
    log(f"{summary['images']} images, from {summary['source']}")
    log(f"{'':14}{'mean':>10}   {'95 % interval':21}{'std':>9}{'count':>8}")
    for key, what in (("metrics", "samples"), ("metrics_of_sample_means", "means of samples")):
        if of_means:
            log(f"{what}:")
        for name, row in summary.get(key, {}).items():
            title, digits = TITLES[name]
            mean, std, *interval = (_text(value, digits) for value in (row["mean"], row["std"], *(row["ci95"] or ())))
            log(f"{title:14}{mean:>10}   {' to '.join(interval) or '-':21}{std:>9}{row['count']:>8}")
    log_distances(summary)


def log_distances(summary: dict) -> None:
    """Log a line for FID and one for KID, where they are in `summary`, with numbers of images and extractor."""
    for name in ("fid", "kid"):
        if name in summary:
            title, digits = TITLES[name]
            of = summary[name]
            images = f"{of['images']} against {of['reference_images']} images, {of['extractor']}"
            images += f", {of['left_out']} left out" if of.get("left_out") else ""
            get_logger().info(f"{title:14}{_text(of['value'], digits):>10}   {images if of['images'] else ''}".rstrip())


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _save(folder: Path, comparison: Comparison, summary: dict) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "sample", *PER_IMAGE])
    for image, sample, scores in comparison.rows:
        writer.writerow([image, sample, *("" if math.isnan(v) else f"{v:.6g}" for v in astuple(scores))])
    write_atomically(folder / "scores.csv", text.getvalue().encode())
    write_atomically(folder / "scores.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    get_logger().info(f"written to {folder / 'scores.json'} and scores.csv")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 0, 1 if some images could not be scored, 2 for a mistake, 130 when interrupted."""
    return run_command(lambda: score(parse_arguments(argv)))


if __name__ == "__main__":
    run_program(main)
