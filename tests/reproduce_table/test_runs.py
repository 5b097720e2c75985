"""The runs of a table: started, continued, failed, interrupted, and what they would cost."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import sample_condition
from tests.helpers import normal
from tests.reproduce_table.conftest import MODEL, read_csv
from util.img_utils import save_image
from util.reproduce_table import __main__ as reproduce_table
from util.reproduce_table import job
from util.reproduce_table.job import Job, Options
from util.reproduce_table.scores import score
from util.reproduce_table.spec import Run, load_table


def test_what_is_there_is_not_run_again_and_more_images_are_added(run, in_process):
    only = ("--methods", "dps", "--limit")
    assert run(*only, "1")[0] == 0
    first = Path("results/tables/tiny/table.csv").read_bytes()
    status, out, _ = run(*only, "1")
    assert status == 0 and len(in_process) == 2 and "2 of them finished before" in out
    assert Path("results/tables/tiny/table.csv").read_bytes() == first
    assert run(*only, "2")[0] == 0
    assert len(in_process) == 4
    assert {r["images"] for r in read_csv("results/tables/tiny/table.csv") if r["method"] == "dps"} == {"2"}


def test_tasks_may_name_their_priors(run, tree, prior, in_process):
    """Without files of the table's own every task has its network; both are told."""
    tree["set"].append(f"model.model_path={prior / 'tiny.pt'}")
    del tree["model_config"], tree["diffusion_config"]
    task = yaml.safe_load((prior / "task.yaml").read_text())
    Path("other.yaml").write_text(yaml.safe_dump(MODEL))
    for name, file in (("sr", str(prior / "model.yaml")), ("noise", "other.yaml")):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({**task, "model_config": file}))
        tree["tasks"][name]["config"] = f"{name}.yaml"
    assert run("--methods", "dps", "--limit", "1")[0] == 0
    cells = {(r["task"], r["prior"]) for r in read_csv("results/tables/tiny/table.csv") if r["prior"]}
    assert cells == {("sr", str(prior / "model.yaml")), ("noise", "other.yaml")}
    text = Path("results/tables/tiny/table.md").read_text()
    assert f"prior: {prior / 'model.yaml'} ({prior / 'tiny.pt'}), other.yaml ({prior / 'tiny.pt'}), network" in text


def test_a_run_that_fails_leaves_the_others(run, tree, in_process):
    tree["methods"]["broken"] = {"title": "Broken", "method": "ps", "set": ["model.model_path=models/none.pt"],
                                 "tasks": ["sr"], "compare_with": "dps"}
    status, _, err = run("--limit", "1", "--methods", "dps,broken")
    assert status == 1
    assert [line for line in err.splitlines() if "models/none.pt not found" in line and "SR, Broken" in line]
    assert "Traceback" not in err and "1 of 3 runs went wrong" in err
    text = Path("results/tables/tiny/table.md").read_text()
    assert "FAILED: checkpoint models/none.pt not found" in text and "SR, Broken: checkpoint" in text
    cells = {(r["metric"], r["task"], r["method"]): r for r in read_csv("results/tables/tiny/table.csv")}
    assert cells["psnr", "noise", "dps"]["ours"] and not cells["psnr", "sr", "broken"]["ours"]
    assert "models/none.pt" in cells["psnr", "sr", "broken"]["remark"]


def test_results_of_other_settings_are_not_shown_as_ours(run, tree, in_process):
    assert run("--limit", "1", "--methods", "free")[0] == 0
    tree["set"] += ["measurement.noise.sigma=0.2"]
    status, _, err = run("--limit", "1", "--methods", "free")
    assert status == 1 and "measurement.noise.sigma (0.05 there, 0.2 now)" in err
    assert "FAILED" in Path("results/tables/tiny/table.md").read_text()
    assert run("--limit", "1", "--methods", "free", "--overwrite")[0] == 0


def test_figures_of_another_precision_or_checkpoint_are_not_shown_as_these(run, prior, tree, in_process, tmp_path):
    tree["model_config"] = str(tmp_path / "model.yaml")
    weights = torch.load(prior / "tiny.pt", weights_only=True)
    torch.save(weights, tmp_path / "mine.pt")
    Path(tree["model_config"]).write_text(yaml.safe_dump({**MODEL, "model_path": str(tmp_path / "mine.pt")}))
    only = ("--limit", "1", "--methods", "free")
    assert run(*only)[0] == 0
    assert "1 of them finished before" in run(*only)[1]
    status, _, err = run(*only, "--precision", "bf16")
    assert status == 1 and "precision (tf32 there, bf16 now)" in err
    torch.save({name: value + 1 for name, value in weights.items()}, tmp_path / "mine.pt")
    status, _, err = run(*only)
    assert status == 1 and "checkpoint" in err
    (tmp_path / "mine.pt").unlink()
    assert "1 of them finished before" in run(*only)[1]                     # results outlive their checkpoint


@pytest.fixture
def photographs(workplace) -> Path:
    """A folder of two."""
    for name in "ab":
        save_image(Path(f"photographs/{name}.png"), normal(3, 16, 16, seed=ord(name)).clamp(-1, 1))
    return Path("photographs")


def test_figures_of_an_image_that_has_changed_are_not_shown_as_these(run, photographs, in_process):
    only = ("--methods", "free", "--data", str(photographs))
    assert run(*only)[0] == 0 and "1 of them finished before" in run(*only)[1]
    (photographs / "b.png").write_bytes((photographs / "a.png").read_bytes())
    status, _, err = run(*only, "--dry_run")
    assert status == 1 and "results of other settings or images" in err and "--overwrite" in err
    status, _, err = run(*only)
    assert status == 1 and "image b was restored from a file that has other contents now" in err
    assert run(*only, "--overwrite")[0] == 0 and "1 of them finished before" in run(*only)[1]


def test_figures_of_a_kernel_that_has_changed_are_not_shown_as_these(run, tree, in_process):
    np.save("kernel.npy", np.ones((3, 3)))
    tree["tasks"]["sr"]["set"] = ["measurement.operator={name: blur, kernel: kernel.npy}"]
    only = ("--limit", "1", "--methods", "free")
    assert run(*only)[0] == 0 and "1 of them finished before" in run(*only)[1]
    np.save("kernel.npy", np.eye(3))
    status, _, err = run(*only)
    assert status == 1 and "files.kernel.npy" in err and "--overwrite" in err
    assert "FAILED" in Path("results/tables/tiny/table.md").read_text()
    assert run(*only, "--overwrite")[0] == 0 and "1 of them finished before" in run(*only)[1]


def test_a_damaged_table_of_one_run_leaves_the_others(run, photographs, in_process):
    only = ("--tasks", "sr", "--data", str(photographs))
    assert run(*only)[0] == 0
    Path("results/tables/tiny/sr/free/super_resolution/vanilla/metrics.csv").write_text("image\n")
    status, out, err = run(*only)
    assert status == 1 and "1 of them finished before" in out and "SR, Free" in err and "not a table of ours" in err
    figures = {row["method"]: row["ours"] for row in read_csv("results/tables/tiny/table.csv")}
    assert figures["dps"] and not figures["free"]


def test_images_of_a_list_that_are_not_there_are_told_before_anything_is_run(run, photographs, in_process):
    Path("mine.txt").write_text("a.png\nb.png\nc.png\n")
    only = ("--methods", "free", "--data", str(photographs), "--set", "data.list=mine.txt")
    status, _, err = run(*only, "--dry_run")
    assert status == 2 and "1 of 3 images are not there (c.png)" in err
    assert run(*only, "--limit", "2")[0] == 0


def test_an_empty_name_of_a_folder_is_not_the_tables_own_data(run, in_process):
    status, _, err = run("--data", "")
    assert status == 2 and "image folder '' not found" in err and not in_process


def test_an_interrupted_table_continues(run, interrupted):
    status, _, err = run("--limit", "1", "--methods", "dps")
    assert status == 130 and "1 of 2 runs are finished" in err and "the same command continues" in err
    assert run("--limit", "1", "--methods", "dps")[0] == 0
    assert len(interrupted) == 3


def test_a_dry_run_lists_cost_and_time_and_runs_nothing(run, tree, in_process):
    tree["methods"]["daps"] = {"title": "DAPS", "method": "daps", "params": {}, "tasks": ["sr"]}
    status, out, err = run("--limit", "3", "--dry_run", "--batch_size", "1")
    assert status == 0, err
    rows = {line[:44].strip(): line[44:].split() for line in out.splitlines() if "," in line[:44]}
    assert rows["SR, DPS"][:4] == ["3", "of", "3", "6"] and rows["SR, DPS"][5] == "s"
    assert rows["SR, DAPS"][:4] == ["3", "of", "3", "9"]                # of two levels, two evaluations and one
    assert "4 runs, 27 network evaluations" in out and "nothing was run" in out
    assert not Path("results").exists()
    assert len(in_process) == 3                                         # one trial per method
    assert "missing" not in err
    assert run("--limit", "2", "--methods", "free")[0] == 0
    assert "free" in in_process[-1][-1]
    _, out, err = run("--limit", "5", "--dry_run", "--methods", "free")
    assert "1 run, 2 network evaluations" in out                        # two of the three images are there
    assert "the data have 3 images: 2 are missing for --limit 5" in err


def test_a_method_without_a_network_takes_one_step(run, tree, in_process):
    tree["methods"] = {"lift": {"title": "Lift", "method": "lift", "params": {}, "tasks": ["sr"]}}
    del tree["paper"]
    assert run("--limit", "1")[0] == 0
    assert "1 step, 1 image" in Path("results/tables/tiny/table.md").read_text()


def test_a_dry_run_without_the_checkpoint_says_so(run, in_process):
    status, out, err = run("--dry_run", "--limit", "1", "--set", "model.model_path=models/none.pt")
    assert status == 1 and "models/none.pt not found" in err and "unknown" in out
    assert len(in_process) == 2                                         # not tried again for every run


@pytest.mark.parametrize("seconds, words", [(3, "3 s"), (99, "99 s"), (125, "2 min"), (3 * 3600 + 300, "3 h 05 min"),
                                            (100 * 3600, "4 d 4 h")])
def test_times_in_words(seconds, words):
    assert reproduce_table.duration(seconds) == words


def test_the_command_as_a_user_starts_it(tree):
    del tree["tasks"]["noise"]
    steps = []
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    table = load_table("tiny.yaml", ["free"])
    args = reproduce_table.parse_arguments(["tiny.yaml", "--limit", "1"])
    job, = reproduce_table.plan(table, args, Path("results"))
    assert job.missing() == 1
    job.execute(lambda done, total: steps.append((done, total)))
    assert (job.error, job.missing()) == ("", 0)
    assert steps[-1] == (2, 2)                                          # the bar of the process was understood
    assert score(job, "psnr").images == 1


def test_a_process_is_read_line_by_line_and_interrupted_with_us(tmp_path):
    code = ("import sys; sys.stderr.write('\\rRestoring: 30%| 3/10 [00:01]\\rRestoring: 40%| 4/10 [00:01]\\n');"
            "print('warning: hot'); print('error: no luck'); sys.exit(2)")
    steps, log = [], []
    status, lines = job.launch([sys.executable, "-c", code], lambda *s: steps.append(s), log.append)
    assert (status, steps, sorted(lines)) == (2, [(3, 10), (4, 10)], ["error: no luck", "warning: hot"])
    assert sorted(log) == sorted(lines)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    witness = tmp_path / "it_went_on"                              # shells start background jobs with SIGINT ignored
    waiting = ("import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
               f"sys.stderr.write('1/2 [x]\\n'); sys.stderr.flush(); time.sleep(60); open({str(witness)!r}, 'w')")
    with pytest.raises(KeyboardInterrupt):
        job.launch([sys.executable, "-c", waiting], stop)
    assert not witness.exists()


def test_an_interrupt_while_a_run_is_being_started_stops_it(monkeypatch):
    started, start = [], job.subprocess.Popen

    def interrupted(*arguments, **options):
        started.append(start(*arguments, **options))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(job.subprocess, "Popen", interrupted)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)     # tests may run where it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            job.launch([sys.executable, "-c", "import time; time.sleep(60)"])
    finally:
        signal.signal(signal.SIGINT, previous)
    assert started[0].poll() is not None


def job_of(options: Options, **diffusion) -> Job:
    run = Run("sr", "dps", "configs/demo_model_config.yaml", "configs/diffusion_config.yaml",
              "configs/demo_task_config.yaml", tuple(f"diffusion.{k}={json.dumps(v)}" for k, v in diffusion.items()))
    return Job(run, run.load("skimage"), ["a", "b"], Path("place"), options, 1, 1)


def test_torchrun_inside_where_asked_for():
    command = job_of(Options("photos", 0, None, 4, nproc=3)).command()
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    arguments = sample_condition.parse_arguments(command[6:])
    assert (arguments.data, arguments.num_samples, arguments.save_dir) == ("photos", 4, "place")
    command = job_of(Options("photos", 0, None, 1, nproc=8, launcher=("srun", "torchrun", "--nnodes=2"))).command()
    assert command[:4] == ["srun", "torchrun", "--nnodes=2", job.PROGRAM]
