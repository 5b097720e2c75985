"""The processes of a run, on torch's distributed engine: one alone, or those that torchrun started.

They share a store of counters and texts, and no tensors, so the same store serves CPUs, GPUs and several machines. Work
is split by a counter: whoever is free takes the next piece.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from util.command import choose_device
from util.errors import UserError
from util.logger import logger

ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")   # what torchrun sets
POLL_SECONDS = 0.1


class Team:
    """The processes of this run, as one of them sees it; a context manager.

    Under torchrun each process sits at its own GPU, where there are GPUs. The log of processes other than the first
    keeps to warnings and errors, which name the rank; the same words are said once.

    Attributes:
        rank: of this process, 0 to size - 1.
        size: how many processes there are.
        device: where this process computes; None for its free choice.

    Raises:
        UserError: a machine has fewer GPUs than processes, or they do not reach each other.
    """

    def __init__(self):
        self.rank, self.size, self.device = 0, 1, None
        self.store: dist.Store = dist.HashStore()
        self.launched = all(variable in os.environ for variable in ENVIRONMENT)

    def __enter__(self) -> "Team":
        if self.launched:
            self._join()
            logger.addFilter(self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        if self.launched:
            logger.removeFilter(self._keep)

    def _join(self) -> None:
        self.device = device_of(int(os.environ["LOCAL_RANK"]))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        try:
            store, self.rank, self.size = next(dist.rendezvous("env://"))
            self.store = dist.PrefixStore("restoration", store)
        except dist.DistError as error:
            raise UserError("the processes of the run do not reach each other at "
                            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({str(error).splitlines()[0]}); "
                            "check torchrun's --nnodes and --rdzv_endpoint, and that no firewall is between") from None

    @property
    def leads(self) -> bool:
        """Whether this process is the one that opens the folder, shows progress and concludes the run."""
        return self.rank == 0

    def choose_device(self, gpu: int | None) -> torch.device:
        """Where to compute; UserError for a `--gpu` that is not there, or any under torchrun."""
        if self.device is None:
            return choose_device(gpu)
        if gpu is not None:
            raise UserError(f"--gpu {gpu}: torchrun gives every process a GPU of its own; leave --gpu out, and choose "
                            "among the GPUs by CUDA_VISIBLE_DEVICES")
        return self.device

    def first(self, what: str) -> bool:
        """Whether no process has asked this of `what` before."""
        return self.add(f"first/{what}", 1) == 1

    def add(self, counter: str, amount: int) -> int:
        """Increase a counter that all processes share, and return it."""
        return self.store.add(counter, amount)

    def publish(self, key: str, text: str) -> None:
        """Leave a text for `receive`."""
        self.store.set(key, text)

    def receive(self, key: str, while_waiting: Callable[[], None] = lambda: None) -> str:
        """The text that some process publishes under `key`, once it does, however long that takes."""
        while not self.store.check([key]):
            while_waiting()
            time.sleep(POLL_SECONDS)
        return self.store.get(key).decode()

    def meet(self, where: str) -> None:
        """Wait until all processes have come to the same place of the run, each once."""
        self.add(f"met {where}", 1)
        while self.add(f"met {where}", 0) < self.size:
            time.sleep(POLL_SECONDS)

    def share(self, count: int) -> Iterator[int]:
        """Those of the numbers 0 to count - 1 that fall to this process: each to the first that is free; once in a run.
        """
        while (number := self.add("taken", 1) - 1) < count:
            yield number

    def gather(self, report: dict[str, object], while_waiting: Callable[[], None]) -> Sequence[dict[str, object]]:
        """In the leading process, the reports of all, by rank, once each has handed in its own; nothing in others."""
        self.publish(f"report {self.rank}", json.dumps(report))
        ranks = range(self.size) if self.leads else ()
        return [json.loads(self.receive(f"report {rank}", while_waiting)) for rank in ranks]

    def _keep(self, record: logging.LogRecord) -> bool:
        """The filter of the log."""
        if record.levelno < logging.WARNING:
            return self.leads
        message = record.getMessage()
        if not self.leads:
            record.msg, record.args = f"rank {self.rank}: {message}", ()
        try:
            return self.first(hashlib.sha256(message.encode(errors="replace")).hexdigest())
        except dist.DistError:                      # the process that keeps the store is gone
            return True


def device_of(local_rank: int) -> torch.device:
    """The GPU of the process `local_rank` of a machine, or the CPU where there is none."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count and local_rank >= count:
        raise UserError(f"this machine has {count} GPU{'s' if count > 1 else ''} for more processes than that; "
                        f"start torchrun with --nproc_per_node={count} at most")
    return torch.device("cuda", local_rank) if count else torch.device("cpu")
