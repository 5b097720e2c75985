"""How a run ends: what is made from all images, or the line that says what is kept; and its exit status."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed import DistError

from guided_diffusion.restoration.build import Task, plugin_mistake
from guided_diffusion.restoration.monitor import Monitor
from guided_diffusion.restoration.plan import Plan
from util.command import Terminated
from util.errors import StorageError, UserError
from util.logger import logger
from util.run.console import environment, log_table
from util.run.directory import RunDirectory
from util.run.team import Team


class Ending:
    """Makes of what ends a run an exit status and a line, which one process says for all; a context manager.

    Attributes:
        status: 0; 1 if images could not be read or diverged, or the disk is full or gone, or the leading process; 2 for
            a mistake; 130 when interrupted.
    """

    def __init__(self, team: Team):
        self.team, self.status = team, 0
        self.kept = ""                              # what is finished, in words

    @contextmanager
    def keeping(self, run: RunDirectory, names: Sequence[str]) -> Iterator[None]:
        """What ends the block leaves these images, as far as they are finished: the line says how many."""
        try:
            yield
        except (KeyboardInterrupt, StorageError):
            done = run.collect()
            self.kept = (f"{sum(name in done for name in names)} of {len(names)} images are finished and kept in "
                         f"{run.path}")
            raise

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> bool:
        try:
            return self._tell(error)
        except DistError as gone:
            return self._tell(gone)

    def _tell(self, error: BaseException | None) -> bool:
        """Whether the error is one that ends a run in good order; then it has been told."""
        match error:
            case KeyboardInterrupt():
                self.status = 130
                if self.team.first("stopped"):
                    logger.error(self._interruption(isinstance(error, Terminated)))
            case UserError():
                self.status = 1 if isinstance(error, StorageError) else 2
                self.team.first("stopped")
                logger.error(f"{error}; {self.kept}" if self.kept else error)
            case DistError():
                self.status = 1
                logger.error(f"the process that leads the run is gone ({str(error).splitlines()[0]}); what is finished "
                             "is kept, and the same command continues")
            case Exception() if mistake := plugin_mistake(error):
                self.status = 2
                self.team.first("stopped")
                logger.error(f"{mistake}; {self.kept}" if self.kept else mistake)
            case _:
                return False
        return True

    def _interruption(self, told: bool) -> str:
        if not self.kept:
            return "interrupted before the first image"
        because = " (another process of the run has ended, or all were told to)" if told and self.team.size > 1 else ""
        return f"{'stopped' if told else 'interrupted'}{because}: {self.kept}; the same command continues"


def bring_together(run: RunDirectory, team: Team, monitor: Monitor, unreadable: int, device: torch.device
                   ) -> tuple[int, int | None]:
    """Hand in what this process did; the leading one waits for all, and has the rows of all then.

    Args:
        unreadable: how many images this process could not read.
        device: where it computes.

    Returns:
        For the leading process, how many images could not be read, and the peak memory in bytes of who took most.
    """
    monitor.draw()
    reports = team.gather({"table": run.store.own_table(), "unreadable": unreadable,
                           "peak": environment(device)["peak_memory_bytes"] or 0}, monitor.refresh)
    for report in reports:
        run.store.merge(report["table"])
    peak = max((report["peak"] for report in reports), default=0)
    return sum(report["unreadable"] for report in reports), peak or None


def conclude(seed: int, task: Task, run: RunDirectory, plan: Plan, unreadable: int, peak: int | None,
             device: torch.device) -> int:
    """Write what is made from all images, show the table, and return the exit status."""
    run.conclude({"operator": task.operator.name, "method": task.method.name, "seed": seed,
                  "lpips_network": "vgg", **environment(device), "peak_memory_bytes": peak})
    log_table(run, plan.names)
    columns = "ground truth | measurement | restoration" if task.source.knows_truth else "measurement | restoration"
    grid = f" (grid.png: {columns})" if any(row.ok for row in run.rows) else ""
    logger.info(f"\nresults in {run.path}{grid}")
    diverged = sum(any(not row.ok for row in run.rows_of(name)) for name in plan.names)
    if unreadable:
        logger.error(f"{unreadable} of {len(plan.names)} images could not be read")
    if diverged:
        logger.error(f"{diverged} of {len(plan.names)} images diverged, see the column status of metrics.csv")
    return 1 if unreadable or diverged else 0
