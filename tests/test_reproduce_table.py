"""`python -m util.reproduce_table`: its runs, and what is printed side by side, with a tiny network."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import sample_condition
from guided_diffusion.unet import create_model
from util import reproduce_table, table_report, table_run
from util.errors import UserError
from util.paper_table import METRICS, Run, load_table
from util.table_report import Entry, Score, evaluate, score
from util.table_run import Job, Options
from util.weights import INCEPTION

MODEL = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "learn_sigma": True,
         "attention_resolutions": "", "num_heads": 1, "use_scale_shift_norm": True}
TASK = {"conditioning": {"method": "ps", "params": {"scale": 1.0}}, "data": {"name": "skimage"},
        "measurement": {"operator": {"name": "super_resolution", "scale_factor": 4},
                        "noise": {"name": "gaussian", "sigma": 0.05}}}


@pytest.fixture(scope="session")
def prior(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prior")
    torch.manual_seed(0)
    torch.save(create_model(**MODEL).state_dict(), folder / "tiny.pt")
    (folder / "model.yaml").write_text(yaml.safe_dump({**MODEL, "model_path": str(folder / "tiny.pt")}))
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    return folder


@pytest.fixture
def tree(prior, tmp_path, monkeypatch) -> dict:
    """The content of a small table; the working directory is empty and there is neither GPU nor network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = str(prior / "task.yaml")
    return {
        "title": "Tiny", "note": "A note.", "metrics": ["psnr", "ssim"], "data": "skimage",
        "model_config": str(prior / "model.yaml"), "diffusion_config": "configs/demo_diffusion_config.yaml",
        "set": ["diffusion.timestep_respacing=2"],
        "tasks": {"sr": {"title": "SR", "config": config},
                  "noise": {"title": "Denoising", "config": config, "set": ["measurement.operator={name: noise}"]}},
        "methods": {"dps": {"title": "DPS", "method": "ps"},
                    "free": {"title": "Free", "method": "vanilla", "params": {}, "tasks": ["sr"]},
                    "other": {"title": "Other"}},
        "paper": [{"source": "P, Table 9", "tasks": ["sr"], "metrics": ["psnr", "ssim"],
                   "rows": {"dps": {"row": "Ours", "values": [99.0, None]},
                            "other": {"row": "O", "values": [1.5, 0.2]}}}],
    }


@pytest.fixture
def in_process(monkeypatch, capsys):
    """The runs' command lines, carried out in this process; the list of them is returned."""
    commands = []

    def launch(command, advance=lambda done, total: None, log=lambda line: None):
        commands.append(command)
        before = capsys.readouterr()
        status = sample_condition.main(command[2:])
        out, err = capsys.readouterr()
        sys.stdout.write(before.out)
        sys.stderr.write(before.err)
        lines = [line for line in (out + err).splitlines() if line.strip()]
        for line in lines:
            log(line)
        return status, lines

    monkeypatch.setattr(table_run, "launch", launch)
    return commands


@pytest.fixture
def run(tree, capsys):
    """run(*arguments) -> (exit status, standard output, standard error) of the command on the small table."""
    def run(*more: str) -> tuple[int, str, str]:
        Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        status = reproduce_table.main(["tiny.yaml", *more])
        return status, *capsys.readouterr()
    return run


def read_csv(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_is_run_and_stands_beside_the_paper(run, in_process):
    status, out, err = run("--limit", "2", "--seed", "4")
    assert status == 0, err
    assert [command[command.index("--save_dir") + 1] for command in in_process] == [
        f"results/tables/tiny/{name}" for name in ("sr/dps", "sr/free", "noise/dps")]
    folder = Path("results/tables/tiny")
    text = (folder / "table.md").read_text()
    assert text in out
    row, = [line for line in text.splitlines() if line.startswith("| SR ") and " 99 " in line]
    measured = [float(r["psnr"]) for r in read_csv(folder / "sr/dps/super_resolution/ps/metrics.csv")]
    mean = sum(measured) / 2
    assert len(measured) == 2 and f"{mean:.2f} ± {abs(measured[0] - measured[1]) / 2:.2f}" in row
    assert f"{mean - 99:+.2f} *" in row and row.split("|")[-2].strip() == "2"
    assert "paper only" in next(line for line in text.splitlines() if "Other" in line)
    for words in ("A note.", "P, Table 9", "Seed 4", "skimage, 2 asked for", "2 steps", '"sigma": 0.05', "tiny.pt"):
        assert words in text
    cells = {(r["metric"], r["task"], r["method"]): r for r in read_csv(folder / "table.csv")}
    dps = cells["psnr", "sr", "dps"]
    assert float(dps["ours"]) == pytest.approx(mean, rel=1e-4)
    assert [dps[k] for k in ("paper", "source", "excludes_paper", "images", "seed", "steps")] == [
        "99.0", "P, Table 9, row Ours", "1", "2", "4", "2"]
    assert cells["ssim", "sr", "dps"]["paper"] == "" and cells["ssim", "sr", "dps"]["ours"]
    assert cells["psnr", "sr", "other"]["remark"] == "not run"
    assert Image.open(folder / "table.png").width > 600
    assert "super_resolution by ps" in (folder / "sr/dps/log.txt").read_text()


def test_what_is_there_is_not_run_again_and_more_images_are_added(run, in_process):
    assert run("--limit", "1")[0] == 0
    first = Path("results/tables/tiny/table.csv").read_bytes()
    status, out, _ = run("--limit", "1")
    assert status == 0 and len(in_process) == 3 and "3 of them finished before" in out
    assert Path("results/tables/tiny/table.csv").read_bytes() == first
    assert run("--limit", "2", "--methods", "dps")[0] == 0
    assert len(in_process) == 5
    assert {r["images"] for r in read_csv("results/tables/tiny/table.csv") if r["method"] == "dps"} == {"2"}


def test_a_run_that_fails_leaves_the_others(run, tree, in_process):
    tree["methods"]["broken"] = {"title": "Broken", "method": "ps", "set": ["model.model_path=models/none.pt"],
                                 "tasks": ["sr"], "compare_with": "dps"}
    status, _, err = run("--limit", "1")
    assert status == 1
    assert [line for line in err.splitlines() if "models/none.pt not found" in line and "SR, Broken" in line]
    assert "Traceback" not in err and "1 of 4 runs went wrong" in err
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


def test_an_interrupted_table_continues(run, in_process, monkeypatch):
    working, started = table_run.launch, []

    def interrupted(*arguments):
        started.append(arguments)
        if len(started) == 2:
            raise KeyboardInterrupt
        return working(*arguments)

    monkeypatch.setattr(table_run, "launch", interrupted)
    status, _, err = run("--limit", "1")
    assert status == 130 and "1 of 3 runs are finished" in err and "the same command continues" in err
    assert run("--limit", "1")[0] == 0
    assert len(started) == 4


def test_a_dry_run_lists_cost_and_time_and_runs_nothing(run, in_process):
    status, out, err = run("--limit", "3", "--dry_run", "--batch_size", "1")
    assert status == 0, err
    rows = {line[:44].strip(): line[44:].split() for line in out.splitlines() if "," in line[:44]}
    assert rows["SR, DPS"][:2] == ["3", "6"] and rows["SR, DPS"][3] == "s"
    assert "3 runs, 18 network evaluations" in out and "nothing was run" in out
    assert not Path("results").exists()
    assert len(in_process) == 2                                         # one trial per method
    assert run("--limit", "2", "--methods", "free")[0] == 0
    assert "free" in in_process[-1][-1]
    out = run("--limit", "3", "--dry_run", "--methods", "free")[1]
    assert "1 run, 2 network evaluations" in out                        # two of the three images are there


def test_a_method_without_a_network_takes_one_step(run, tree, in_process):
    tree["methods"] = {"lift": {"title": "Lift", "method": "lift", "params": {}, "tasks": ["sr"]}}
    del tree["paper"]
    out = run("--limit", "3", "--dry_run")[1]
    assert "1 run, 3 network evaluations" in out
    assert run("--limit", "1")[0] == 0
    assert "1 step, 1 image" in Path("results/tables/tiny/table.md").read_text()


def test_a_dry_run_without_the_checkpoint_says_so(run, tree, in_process):
    status, out, err = run("--dry_run", "--limit", "1", "--set", "model.model_path=models/none.pt")
    assert status == 1 and "models/none.pt not found" in err and "unknown" in out
    assert len(in_process) == 2                                         # not tried again for every run


def test_of_several_samples_the_best_fit_counts(run, tree, in_process):
    tree |= {"num_samples": 2, "metrics": ["psnr"]}
    assert run("--limit", "2", "--methods", "dps")[0] == 0
    rows = read_csv("results/tables/tiny/sr/dps/super_resolution/ps/metrics.csv")
    best = [min((r for r in rows if r["image"] == image and r["sample"] != "mean"), key=lambda r: float(r["distance"]))
            for image in ("astronaut", "chelsea")]
    ours = next(r for r in read_csv("results/tables/tiny/table.csv") if (r["task"], r["method"]) == ("sr", "dps"))
    assert float(ours["ours"]) == pytest.approx(sum(float(r["psnr"]) for r in best) / 2, rel=1e-4)
    assert "lowest measurement error" in Path("results/tables/tiny/table.md").read_text()


def test_metrics_that_cannot_be_had_give_their_reason(run, tree, in_process):
    tree["metrics"] = ["psnr", "lpips", "fid"]
    status, _, err = run("--limit", "2", "--methods", "free")
    assert status == 0, err
    text = Path("results/tables/tiny/table.md").read_text()
    assert "LPIPS" in text.partition("## LPIPS, VGG (lower is better)")[2].partition("##")[0]
    assert "FID is left out" in text
    assert {r["ours"] for r in read_csv("results/tables/tiny/table.csv") if r["metric"] != "psnr"} == {""}


def test_fid_is_of_the_saved_images(run, tree, in_process, monkeypatch):
    class Colours:
        def features(self, x):
            return x.mean(dim=(1, 2))               # (3, H, W) -> (3,)

    monkeypatch.setattr(table_report, "_features", lambda gpu, weights_dir: Colours())
    tree["metrics"] = ["fid"]
    Path("weights").mkdir()
    (Path("weights") / INCEPTION.name).touch()
    assert run("--methods", "free", "--weights_dir", "weights")[0] == 0
    row, = [r for r in read_csv("results/tables/tiny/table.csv") if r["method"] == "free"]
    assert float(row["ours"]) > 0 and row["images"] == "3" and row["ci95_low"] == ""
    job, = reproduce_table.plan(load_table("tiny.yaml").select(["free"]), reproduce_table.parse_arguments(
        ["tiny.yaml", "--weights_dir", "weights"]), Path("results/tables/tiny"))
    for name in job.names:
        shutil.copy(job.path / "label" / f"{name}.png", job.path / "recon" / f"{name}.png")
    assert score(job, "fid").value == pytest.approx(0, abs=1e-3)


def test_a_line_plot_over_x(run, tree, in_process):
    tree |= {"plot": "line", "log_x": True, "x_label": "steps", "metrics": ["psnr"]}
    tree["tasks"]["sr"]["x"], tree["tasks"]["noise"]["x"] = 1, 10
    assert run("--limit", "2")[0] == 0
    picture = Image.open("results/tables/tiny/table.png").convert("RGB")
    assert picture.width > 600 and len(picture.getcolors(1 << 20)) > 100


def test_the_command_as_a_user_starts_it(run, tree, capsys):
    del tree["tasks"]["noise"]
    steps = []
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    table = load_table("tiny.yaml").select(["free"])
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
    status, lines = table_run.launch([sys.executable, "-c", code], lambda *s: steps.append(s), log.append)
    assert (status, steps, sorted(lines)) == (2, [(3, 10), (4, 10)], ["error: no luck", "warning: hot"])
    assert sorted(log) == sorted(lines)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    witness = tmp_path / "it_went_on"                              # shells start background jobs with SIGINT ignored
    waiting = ("import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
               f"sys.stderr.write('1/2 [x]\\n'); sys.stderr.flush(); time.sleep(60); open({str(witness)!r}, 'w')")
    with pytest.raises(KeyboardInterrupt):
        table_run.launch([sys.executable, "-c", waiting], stop)
    assert not witness.exists()


def job_of(options: Options, **diffusion) -> Job:
    run = Run("sr", "dps", "configs/demo_model_config.yaml", "configs/diffusion_config.yaml",
              "configs/demo_task_config.yaml", tuple(f"diffusion.{k}={json.dumps(v)}" for k, v in diffusion.items()))
    return Job(run, run.load("skimage"), ["a", "b"], Path("place"), options, 1)


def test_torchrun_inside_where_asked_for():
    command = job_of(Options("photos", 0, None, 4, nproc=3)).command()
    assert command[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    arguments = sample_condition.parse_arguments(command[6:])
    assert (arguments.data, arguments.num_samples, arguments.save_dir) == ("photos", 4, "place")


@pytest.mark.parametrize("paper, excluded", [(10.0, False), (9.0, True), (12.9, False), (13.1, True)])
def test_a_figure_is_marked_when_the_interval_excludes_it(tree, paper, excluded):
    tree["paper"][0]["rows"]["dps"]["values"] = [paper, None]
    Path("tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    cell = load_table("tiny.yaml").cells[0]
    entry = Entry(cell, None, Score(11.0, 9.5, 13.0, 4))
    assert entry.excludes_paper == excluded
    assert entry.difference == pytest.approx(11 - paper)
    assert not Entry(cell, None, Score(11.0, images=1)).excludes_paper  # one image has no interval


def test_every_metric_is_a_column_that_runs_write(tree, run, in_process):
    tree["methods"] = {"free": tree["methods"]["free"]}
    del tree["paper"]
    assert run("--limit", "1")[0] == 0
    columns = set(read_csv("results/tables/tiny/sr/free/super_resolution/vanilla/metrics.csv")[0])
    assert {metric.column for metric in METRICS.values()} - {None} <= columns
    table = load_table("tiny.yaml")
    assert [entry.score.remark for entry in evaluate(table, [
        Job(table.runs[0], table.runs[0].load("skimage"), ["astronaut"], Path("nowhere"), Options(None, 0, 1, 1), 1)
    ])] == ["no image is finished"] * 2


@pytest.mark.parametrize("keys, value, words", [
    (["titel"], "x", ["'titel'", "did you mean 'title'"]),
    (["metrics"], ["psnr", "sim"], ["'sim'", "did you mean 'ssim'"]),
    (["plot"], "pie", ["plot is 'pie'", "'bar', 'line'"]),
    (["plot"], "line", ["tasks.sr.x is None"]),
    (["limit"], 0, ["limit is 0"]),
    (["tasks", "sr", "confg"], "x", ["tasks.sr", "'confg'", "did you mean 'config'"]),
    (["tasks", "sr"], 3, ["tasks.sr is 3", "expected a mapping"]),
    (["tasks", "../up"], {"title": "x", "config": "y"}, ["'../up' names a folder"]),
    (["tasks", ".."], {"title": "x", "config": "y"}, ["'..' names a folder"]),
    (["tasks", "sr", "config"], "{settings}.yaml", ["methods.dps needs settings"]),
    (["methods", "dps", "methd"], "ps", ["methods.dps", "did you mean 'method'"]),
    (["methods", "dps", "tasks"], ["nois"], ["unknown task 'nois'", "did you mean 'noise'"]),
    (["methods", "dps", "compare_with"], "othr", ["did you mean 'other'"]),
    (["paper", 0, "rows", "dpss"], {"row": "x", "values": [1, 2]}, ["did you mean 'dps'"]),
    (["paper", 0, "rows", "dps", "values"], [1.0], ["1 entries, expected 2"]),
    (["paper", 0, "rows", "dps", "values"], ["a", 1.0], ["values is ['a', 1.0]"]),
    (["paper", 0, "source"], None, ["paper[0]", "source is None"]),
    (["methods"], {}, ["paper[0]"]),
])
def test_mistakes_in_a_table_are_named(run, tree, in_process, keys, value, words):
    node = tree
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    status, out, err = run()
    assert (status, out) == (2, "") and len(err.splitlines()) == 1, err
    for word in words:
        assert word in err
    assert not in_process


@pytest.mark.parametrize("options, words", [
    (["--methods", "dsp"], ["'dsp'", "no method of this table", "did you mean 'dps'"]),
    (["--methods", "other"], ["'other'", "not implemented here", "choose from dps, free"]),
    (["--methods", ""], ["''", "choose from dps, free"]),
    (["--limt", "3"], ["'--limt'", "did you mean '--limit'"]),
    (["--limit", "0"], ["--limit", "1 or more"]),
    (["--seed", "-1"], ["--seed"]),
    (["--nproc", "two"], ["--nproc"]),
    (["--weights_dir", "nowhere"], ["--weights_dir", "'nowhere' not found"]),
    (["--data", "nowhere"], ["'nowhere' not found"]),
    (["--set", "measurment.noise.sigma=1"], ["'measurment'", "did you mean 'measurement'"]),
    (["--set", "conditioning.params.scal=1"], ["SR, DPS", "unknown key 'scal'", "did you mean 'scale'"]),
    (["--set", "conditioning.params.scale=-1"], ["SR, DPS", "scale is -1, expected 0 or more"]),
    (["--set", "measurement.operator.scale_facto=2"], ["SR, DPS", "'scale_facto'", "did you mean 'scale_factor'"]),
    (["--set", "diffusion.eta=x"], ["SR, DPS", "eta is 'x'"]),
    (["--save_dir", "file"], ["cannot write", "--save_dir"]),
])
def test_mistakes_on_the_command_line_end_with_status_2(run, in_process, options, words):
    Path("file").write_text("in the way")
    status, out, err = run(*options)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1, out + err
    for word in words:
        assert word in errors[0]


def test_a_table_of_nothing_is_a_mistake(run, tree):
    tree["methods"], tree["paper"] = {"other": {"title": "Other"}}, []
    status, _, err = run("--dry_run")
    assert status == 2 and "nothing to show" in err


def test_a_table_of_the_papers_figures_alone(run, tree):
    del tree["methods"]["dps"], tree["methods"]["free"], tree["paper"][0]["rows"]["dps"]
    assert run("--dry_run")[0] == run()[0] == 0
    assert "| SR   | Other  |   1.5 |  paper only |" in Path("results/tables/tiny/table.md").read_text()


def test_a_table_that_is_not_there():
    with pytest.raises(UserError, match=r"did you mean '.*demo.yaml'"):
        load_table("configs/tables/dmo.yaml")


@pytest.mark.parametrize("seconds, words", [(3, "3 s"), (99, "99 s"), (125, "2 min"), (3 * 3600 + 300, "3 h 05 min"),
                                            (100 * 3600, "4 d 4 h")])
def test_times_in_words(seconds, words):
    assert reproduce_table.duration(seconds) == words
