"""From restored batches to finished images: samples are brought together, judged and saved."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from data.dataloader import Batch
from guided_diffusion.measurements.base import Measurement
from guided_diffusion.measurements.sources import Source
from util.compute_metric import Metrics
from util.logger import get_logger
from util.measurement_files import StoredMeasurement
from util.metrics_table import MEAN, Outcome
from util.console import Monitor
from util.run_dir import RunDirectory

logger = get_logger()


class Gatherer:
    """Brings the samples of an image together, and hands complete images to the run directory.

    Args:
        source: knows the truth, and what else an image is saved with.
        metrics: scores images whose truth is known.
        num_samples: posterior samples per image.
        to_store: to_store(measurement, b) -> entry b as it is saved; None where measurements are not saved.
    """

    def __init__(self, run: RunDirectory, source: Source, metrics: Metrics | None, num_samples: int,
                 to_store: Callable[[Measurement, int], StoredMeasurement] | None = None):
        self.run, self.source, self.metrics = run, source, metrics
        self.num_samples, self.to_store = num_samples, to_store
        self.outcomes: dict[str, list[Outcome]] = defaultdict(list)

    def add(self, batch: Batch, measurement: Measurement, restored: Tensor, monitor: Monitor) -> None:
        """Take in a restored batch (B, 3, H, W), and save the images that are complete with it."""
        course = monitor.course()
        seconds, evaluations = monitor.seconds / len(restored), monitor.evaluations / len(restored)
        for b, judged in enumerate(judge(measurement, restored)):
            name = batch.names[b]
            self.outcomes[name].append(Outcome(str(batch.samples[b]), seconds=seconds, network_evaluations=evaluations,
                                               trajectory=course.trajectory(b), **judged))
            if not torch.isfinite(judged["restored"]).all():
                logger.warning(f"the restoration of {name} diverged; try a smaller conditioning.params.scale")
        # the mean of the samples so far, per entry: complete at the last sample of its image
        means = torch.stack([torch.stack([o.restored for o in self.outcomes[name]]).mean(0) for name in batch.names])
        lifted = measurement.lift().cpu()
        for b, judged in enumerate(judge(measurement, means.to(restored.device))):
            if batch.samples[b] == self.num_samples - 1:
                outcomes = self.outcomes.pop(batch.names[b])
                if self.num_samples > 1:
                    outcomes.append(Outcome(MEAN, seconds=sum(o.seconds for o in outcomes), **judged,
                                            network_evaluations=sum(o.network_evaluations for o in outcomes)))
                self._save(batch, b, measurement, lifted[b], outcomes)

    def _save(self, batch: Batch, b: int, measurement: Measurement, lifted: Tensor, outcomes: list[Outcome]) -> None:
        name = batch.names[b]
        if self.to_store is not None:
            self.run.save_measurement(name, self.to_store(measurement, b))
        self.run.save(name, self.source.truth(batch, b), lifted, outcomes, self.metrics, self.source.alpha(name))


@torch.no_grad()
def judge(measurement: Measurement, x: Tensor) -> list[dict[str, object]]:
    """Each image on the CPU with its equivalents, its distance and its chi-square, as `Outcome` names them."""
    equivalents = torch.stack(measurement.operator.ambiguities(x), dim=1)[:, 1:].cpu()         # (B, n, 3, H, W)
    values = zip(x.cpu(), equivalents, measurement.distance(x).tolist(), measurement.chi_square(x).tolist(),
                 strict=True)
    return [{"restored": image, "equivalents": tuple(others), "distance": distance, "chi_square": chi_square}
            for image, others, distance, chi_square in values]
