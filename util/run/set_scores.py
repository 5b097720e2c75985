"""FID and KID of a run: each process extracts features of its share of the saved files, the leading one compares."""

import json
from collections.abc import Sequence

from util.metrics.comparison import Comparison, compare
from util.metrics.pairs import MEAN, Pair
from util.metrics.scores import Metrics
from util.run.directory import RunDirectory
from util.run.team import Team

SET_SCORES = ("fid", "kid")


def score_sets(run: RunDirectory, metrics: Metrics, team: Team, names: Sequence[str], num_samples: int
               ) -> dict[str, dict[str, object]]:
    """FID and KID of recon/ against label/, as summary.json has them; all processes of the run call this.

    Files that cannot be read, samples that diverged and images that were passed over are left out and counted. Without
    the network there are neither values nor a count (None).

    Args:
        run: has all rows, in the leading process.
        names: the images that are asked for.
        num_samples: posterior samples of each.

    Returns:
        "fid" and "kid" with value, extractor and counts; nothing in other processes than the leading one.
    """
    if team.leads:
        team.publish("restored", json.dumps(_restored(run)))
    samples: dict[str, list[str]] = json.loads(team.receive("restored"))
    own = Comparison()
    if able := "inception" in metrics.networks:
        images = list(samples)
        shared = (_pair(run, images[number], sample, num_samples > 1)
                  for number in team.share(len(images), "scored") for sample in samples[images[number]])
        own = compare(shared, metrics, per_image=False, progress=team.leads)
    reports = team.gather({"able": able, "real": own.real, "restored": own.restored}, lambda: None)
    if not team.leads:
        return {}
    able = all(report["able"] for report in reports)
    whole = _merge(reports, samples) if able else Comparison()
    missing = num_samples * len({*names, *(row.image for row in run.rows)}) - len(whole.restored) if able else None
    return {name: {**distance, "left_out": missing} for name, distance in whole.distances(SET_SCORES).items()}


def _restored(run: RunDirectory) -> dict[str, list[str]]:
    """The samples of every image that are there and have a truth to compare with."""
    samples: dict[str, list[str]] = {}
    for row in run.rows:
        if row.ok and row.has_truth and row.sample != MEAN:
            samples.setdefault(row.image, []).append(row.sample)
    return samples


def _pair(run: RunDirectory, image: str, sample: str, several: bool) -> Pair:
    return Pair(image, sample, run.path_of("recon", image, sample if several else None), run.path_of("label", image))


def _merge(reports: Sequence[dict], samples: dict[str, list[str]]) -> Comparison:
    """The features of all processes in the order of the run's table, as one process would have them."""
    real = {image: features for report in reports for image, features in report["real"].items()}
    restored = {key: features for report in reports for key, features in report["restored"].items()}
    keys = [(image, sample) for image, own in samples.items() for sample in own]
    return Comparison(real={image: real[image] for image in samples if image in real},
                      restored={key: restored[key] for key in keys if key in restored})
