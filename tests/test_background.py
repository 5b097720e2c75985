"""Images are scored and saved in a thread, as beside a GPU, with the results of a run without one."""

import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from guided_diffusion.restoration import gather
from guided_diffusion.restoration.build import Task
from tests.command_line import FOLDER, contents
from util.errors import StorageError
from util.run.directory import RunDirectory


@pytest.fixture
def run(run):
    """With a single step, as sampling is not what happens in the thread."""
    return partial(run, "--set", "diffusion.timestep_respacing=1")


@pytest.fixture
def beside(monkeypatch):
    """The run saves in a thread; the list of those that saved."""
    threads, save = [], RunDirectory.save
    monkeypatch.setattr(gather, "THREADED", ("cpu", "cuda"))
    monkeypatch.setattr(RunDirectory, "save", lambda *given: (threads.append(threading.current_thread()), save(*given)))
    return threads


def test_a_thread_saves_what_the_run_itself_would(run, beside, monkeypatch):
    assert run("--batch_size", "1", "--num_samples", "2", "--save_dir", "beside")[0] == 0
    assert len(beside) == 3 and threading.main_thread() not in beside
    assert not beside[0].is_alive()
    monkeypatch.setattr(gather, "THREADED", ("cuda",))
    assert run("--batch_size", "1", "--num_samples", "2", "--save_dir", "alone")[0] == 0
    assert beside[3:] == [threading.main_thread()] * 3
    assert contents(Path("beside", FOLDER)) == contents(Path("alone", FOLDER))


def test_images_are_saved_while_the_next_batch_is_restored(run, beside, monkeypatch):
    """The first image is not saved until the restoration of the second one has begun."""
    begun, save, measure = threading.Event(), RunDirectory.save, Task.measure

    def patient(self, image, *given):
        assert begun.wait(timeout=60)
        save(self, image, *given)

    def telling(self, batch, *given):
        if batch.names[0] == "chelsea":
            begun.set()
        return measure(self, batch, *given)

    monkeypatch.setattr(RunDirectory, "save", patient)
    monkeypatch.setattr(Task, "measure", telling)
    assert run("--batch_size", "1")[0] == 0


def test_a_full_disk_ends_the_run_and_keeps_what_was_saved(run, beside, monkeypatch):
    save = RunDirectory.save

    def full(self, image, *given):
        if image == "chelsea":
            raise StorageError("cannot write chelsea.png: No space left on device")
        save(self, image, *given)

    monkeypatch.setattr(RunDirectory, "save", full)
    status, _, err = run("--batch_size", "1")
    assert status == 1
    assert "No space left" in err and "1 of 3 images are finished" in err


def test_an_interrupt_keeps_what_is_restored(run, beside, monkeypatch):
    measure = Task.measure

    def interrupted(self, batch, *given):
        if batch.names[0] == "coffee":
            raise KeyboardInterrupt
        return measure(self, batch, *given)

    monkeypatch.setattr(Task, "measure", interrupted)
    status, _, err = run("--batch_size", "1")
    assert status == 130
    assert "2 of 3 images are finished" in err


def test_scores_without_memory_beside_the_sampling_are_computed_after_it(run, beside, monkeypatch):
    save, refused = RunDirectory.save, []

    def hungry(*given):
        if threading.current_thread() is not threading.main_thread():
            refused.append(given[1])
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        save(*given)

    monkeypatch.setattr(RunDirectory, "save", hungry)
    status, out, err = run("--batch_size", "1")
    assert (status, err.count("out of memory")) == (0, 0)
    assert refused == ["astronaut", "chelsea", "coffee"]
    assert all(name in out for name in refused)


def test_an_image_without_memory_after_the_sampling_is_not_lost(run, beside, monkeypatch):
    """Its second try fails, too: the batch after it is halved, and then it is saved."""
    save, refused = RunDirectory.save, []

    def hungry(*given):
        if given[1] == "astronaut" and len(refused) < 2:
            refused.append(given[1])
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        save(*given)

    monkeypatch.setattr(RunDirectory, "save", hungry)
    status, out, err = run("--batch_size", "2")
    assert (status, len(refused)) == (0, 2)
    assert "going on with batches of 1" in err
    assert all(name in out for name in ("astronaut", "chelsea", "coffee"))


def test_images_that_never_find_memory_are_told_of(run, beside, monkeypatch):
    """Restored last, so that no smaller batch helps."""
    save = RunDirectory.save

    def hungry(*given):
        if given[1] == "coffee":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        save(*given)

    monkeypatch.setattr(RunDirectory, "save", hungry)
    status, _, err = run("--batch_size", "2")
    assert status == 2
    assert "1 of the restored images could not be scored and saved: out of memory" in err and "Traceback" not in err
    monkeypatch.setattr(RunDirectory, "save", save)
    assert run("--batch_size", "2")[0] == 0
