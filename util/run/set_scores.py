"""FID and KID of a run, which the leading process finds in the saved files."""

from collections.abc import Sequence

from util.metrics.comparison import compare
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
    found, able = {}, "inception" in metrics.networks
    if team.leads:
        pairs = [Pair(row.image, row.sample, run.path_of("recon", row.image, row.sample if num_samples > 1 else None),
                      run.path_of("label", row.image))
                 for row in run.rows if able and row.ok and row.has_truth and row.sample != MEAN]
        comparison = compare(pairs, metrics, per_image=False)
        asked_for = num_samples * len({*names, *(row.image for row in run.rows)})
        missing = asked_for - len(comparison.restored) if able else None
        found = {name: {**score, "left_out": missing} for name, score in comparison.distances(SET_SCORES).items()}
    team.meet("scored")
    return found
