"""From restored batches to finished images: samples are brought together, judged and saved."""

from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from data.dataloader import Batch
from guided_diffusion.measurements.measurement import Measurement
from guided_diffusion.measurements.sources import to_store
from guided_diffusion.method import Method
from guided_diffusion.restoration.build import Task
from guided_diffusion.restoration.monitor import Course
from guided_diffusion.restoration.plan import Plan
from util.config.config import Config
from util.config.registry import defaults
from util.errors import UserError
from util.logger import logger
from util.memory import free_memory, is_out_of_memory
from util.metrics.perceptual import PERCEPTUAL
from util.metrics.scores import Metrics
from util.run.directory import RunDirectory
from util.run.measurements import write_measurement
from util.run.table import MEAN, Outcome, finite_samples

THREADED = ("cuda",)                                # devices beside which images are scored and saved


class Gatherer:
    """Brings the samples of an image together, and has complete images scored and saved; a context manager.

    Beside a GPU that happens in a thread, while the device restores the next batch. What goes wrong there is raised by
    the next `add`, or at the end, where the context waits for all that is left. Images that are finished stay as they
    are. The networks that judge are loaded if the truth is known and there is something to judge.
    """

    def __init__(self, args: Namespace, config: Config, task: Task, run: RunDirectory, plan: Plan,
                 device: torch.device):
        self.run, self.source, self.num_samples, self.finished = run, task.source, args.num_samples, plan.finished
        self.metrics = None
        if task.source.knows_truth:
            self.metrics = Metrics(device, args.weights_dir, PERCEPTUAL if plan.groups else ())
        self.remedy = remedy_for(task.method)
        self.to_store = None                        # to_store(measurement, b) -> entry b as it is saved
        if args.save_measurements:
            settings = config.as_dict()["measurement"]
            self.to_store = partial(to_store, operator=settings["operator"], noise=settings["noise"], seed=args.seed,
                                    observed=config.observed)
        self.outcomes: dict[str, list[Outcome]] = defaultdict(list)
        self.thread = ThreadPoolExecutor(1) if device.type in THREADED else None
        self.pending: list[tuple[Callable[[], None], Future]] = []
        self.again: list[Callable[[], None]] = []   # what found no memory

    def __enter__(self) -> "Gatherer":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.thread is not None:
            self.thread.shutdown()                  # complete images are saved, whatever else has happened
        if kind is not None:
            return
        try:
            self._settle()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(f"{len(self.again)} of the restored images could not be scored and saved: out of memory, "
                            "with nothing else at work; the same command tries them again") from None

    def _settle(self) -> None:
        """Wait for what is being saved, and raise what went wrong.

        What found no memory beside the sampling is tried again, now that nothing else runs, until it is saved.
        """
        self.again += [save for save, future in self.pending if ran_out_of_memory(future)]
        self.pending.clear()                        # and with it the exceptions, which hold tensors
        while self.again:
            free_memory()
            self.again[0]()
            del self.again[0]

    def begin(self, batch: Batch) -> None:
        """Get ready for a batch; of the images whose first sample is in it, what came before is forgotten."""
        for name, sample in zip(batch.names, batch.samples, strict=True):
            if sample == 0:
                self.outcomes.pop(name, None)
            if name not in self.finished:
                self.run.begin(name)

    def add(self, batch: Batch, measurement: Measurement, course: Course) -> None:
        """Take in a restored batch, and save the images that are complete with it."""
        self._settle()
        restored = course.restored
        seconds, evaluations, backward_passes = (
            total / len(restored) for total in (course.seconds, course.evaluations, course.backward_passes))
        for b, judged in enumerate(judge(measurement, restored)):
            outcome = Outcome(str(batch.samples[b]), seconds=seconds, network_evaluations=evaluations,
                              backward_passes=backward_passes, trajectory=course.trajectory(b),
                              diverged=course.diverged[b], **judged)
            self.outcomes[batch.names[b]].append(outcome)
            if outcome.diverged is not None and batch.names[b] not in self.finished:
                which = f", sample {outcome.sample}," if self.num_samples > 1 else ""
                logger.warning(f"{batch.names[b]}{which} {outcome.status}; {self.remedy}")
        if self.num_samples > 1:
            # the mean of the samples so far, per entry: complete at the last sample of its image
            means = torch.stack([mean_image(self.outcomes[name]) for name in batch.names])
            judgements = judge(measurement, means.to(restored.device))
        lifted = measurement.lift().cpu()
        for b, sample in enumerate(batch.samples):
            if sample == self.num_samples - 1:
                outcomes = self.outcomes.pop(batch.names[b])
                if self.num_samples > 1:
                    outcomes.append(mean_outcome(outcomes, judgements[b]))
                self._save(batch, b, measurement, lifted[b], outcomes)

    def _save(self, batch: Batch, b: int, measurement: Measurement, lifted: Tensor, outcomes: list[Outcome]) -> None:
        name = batch.names[b]
        if name in self.finished:
            return
        if self.to_store is not None:
            write_measurement(self.run.path_of("measurements", name), self.to_store(measurement, b))
        save = partial(self.run.save, name, self.source.truth(batch, b), lifted, outcomes, self.metrics,
                       self.source.alpha(name), self.source.fingerprint(name))
        if self.thread is None:
            save()
        else:
            self.pending.append((save, self.thread.submit(save)))


def remedy_for(method: Method) -> str:
    """What to try where images diverge under `method`."""
    accepted = defaults(type(method))
    milder = "a smaller conditioning.params.scale" if "scale" in accepted else (
        f"other conditioning.params ({', '.join(accepted)})" if accepted else "another conditioning.method")
    return (f"probably too large a step for this noise level: try {milder}, check measurement.noise and the data, and "
            "use --precision fp32 in place of half precision")


def ran_out_of_memory(future: Future) -> bool:
    """Whether memory was what ended it, once it has; raises whatever else went wrong."""
    error = future.exception()
    if error is not None and not is_out_of_memory(error):
        raise error
    return error is not None


def mean_image(outcomes: Sequence[Outcome]) -> Tensor:
    """The mean (3, H, W) of the samples that did not diverge; a sample that did where there is no other."""
    return torch.stack([outcome.restored for outcome in finite_samples(outcomes) or outcomes[:1]]).mean(dim=0)


def mean_outcome(outcomes: Sequence[Outcome], judged: dict[str, object]) -> Outcome:
    """The outcome of an image's mean, from those of its samples and what `judge` says of it."""
    diverged = None if finite_samples(outcomes) else max(outcome.diverged for outcome in outcomes)
    return Outcome(MEAN, seconds=sum(outcome.seconds for outcome in outcomes), diverged=diverged, **judged,
                   network_evaluations=sum(outcome.network_evaluations for outcome in outcomes),
                   backward_passes=sum(outcome.backward_passes for outcome in outcomes))


@torch.no_grad()
def judge(measurement: Measurement, x: Tensor) -> list[dict[str, object]]:
    """Each image on the CPU with its equivalents, its distance and its chi-square, as `Outcome` names them."""
    equivalents = torch.stack(measurement.operator.ambiguities(x), dim=1)[:, 1:].cpu()         # (B, n, 3, H, W)
    values = zip(x.cpu(), equivalents, measurement.distance(x).tolist(), measurement.chi_square(x).tolist(),
                 strict=True)
    return [{"restored": image, "equivalents": tuple(others), "distance": distance, "chi_square": chi_square}
            for image, others, distance, chi_square in values]
