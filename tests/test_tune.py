"""`python -m guided_diffusion.tune`: the command on classical methods, and the task file that keeps its comments."""

import csv
import re
from pathlib import Path

import pytest
import yaml

import sample_condition
from guided_diffusion.tune import __main__ as tune
from util.config.config import REPOSITORY, read_yaml
from util.config.yaml_text import ConfigLoader, assign, set_values
from util.reproduce_table import job

SHIPPED = sorted(REPOSITORY.glob("configs/*_config.yaml"))
TASK = """\
# A task.
conditioning:
  method: total_variation
  params:
    weight: 0.5                     # far too much

data:
  name: skimage
  images: [astronaut, coffee]
  image_size: 32

measurement:
  operator: {name: noise}
  noise:
    name: gaussian
    sigma: 0.2                      # on the [-1, 1] scale
"""


# ---- the text of a YAML file -----------------------------------------------------------------------------------------

def comments(text):
    return re.findall(r"#.*", text)


@pytest.mark.parametrize("path, value", [
    ("conditioning.params.weight", 0.1), ("conditioning.params.weight", 1e-5), ("conditioning.method", "lift"),
    ("conditioning.params.after", "wiener"), ("conditioning.params.after_params.balance", 0.1),
    ("measurement.noise.sigma", 3), ("measurement.operator.name", "sr_average"), ("measurement.mask_opt.file", "a: b"),
    ("measurement.operator.scale_factor", 4), ("measurement.operator.range", [0, 1]), ("data.images", ["coffee"]),
    ("data.observed", True), ("conditioning.params.after", None), ("new", {"a": {"b": "yes"}}),
])
def test_a_value_is_changed_and_all_comments_stay(path, value):
    keys = tuple(path.split("."))
    wanted = yaml.load(TASK, Loader=ConfigLoader)
    assign(wanted, keys, value)
    changed = set_values(TASK, [(keys, value)])
    assert yaml.load(changed, Loader=ConfigLoader) == wanted
    assert comments(changed) == comments(TASK)
    assert len(set(TASK.splitlines()) - set(changed.splitlines())) <= 1                    # all other lines are kept


def test_a_whole_section_is_replaced():
    changed = set_values(TASK, [(("conditioning", "params"), {}), (("conditioning", "params", "tv_weight"), 0.2)])
    assert yaml.load(changed, Loader=ConfigLoader)["conditioning"]["params"] == {"tv_weight": 0.2}
    assert "# A task." in changed and "# on the [-1, 1] scale" in changed


@pytest.mark.parametrize("text", ["", "a: 1\n", "a: &x {b: 1}\nc: *x\n", "{a: {}}", "a:\n"])
def test_any_mapping_can_be_changed(text):
    wanted = yaml.load(text, Loader=ConfigLoader) or {}
    assign(wanted, ("c", "b"), 2)
    assert yaml.load(set_values(text, [(("c", "b"), 2)]), Loader=ConfigLoader) == wanted


@pytest.mark.parametrize("path", [p for p in SHIPPED if "conditioning" in read_yaml(p)], ids=lambda path: path.stem)
def test_shipped_tasks_keep_their_comments(path):
    text = path.read_text()
    changed = set_values(text, [(("conditioning", "params", "scale"), 0.125)])
    assert read_yaml(path)["conditioning"]["params"] | {"scale": 0.125} == yaml.load(
        changed, Loader=ConfigLoader)["conditioning"]["params"]
    assert comments(changed) == comments(text) and changed.endswith("\n") == text.endswith("\n")


# ---- the command -----------------------------------------------------------------------------------------------------

@pytest.fixture
def run(workplace, in_process, capsys):
    """run(*arguments) -> (exit status, standard output, standard error); runs are carried out in this process."""
    Path("task.yaml").write_text(TASK)

    def run(*more: str) -> tuple[int, str, str]:
        status = tune.main(["--task_config", "task.yaml", "--grid", "conditioning.params.weight=0.01,0.06,0.5",
                            "--out", "tuned.yaml", *more])
        return status, *capsys.readouterr()
    return run


def measured(folder):
    with open(next(Path(folder).rglob("metrics.csv")), newline="") as file:
        return list(csv.DictReader(file))


def test_a_task_is_tuned(run):
    status, out, err = run()
    assert status == 0, err
    means = {weight: sum(float(row["psnr"]) for row in measured(f"results/tune/task/weight={weight}")) / 2
             for weight in ("0.01", "0.06", "0.5")}
    assert max(means, key=means.get) == "0.06"                          # as one would expect of this noise
    text = Path("tuned.yaml").read_text()
    assert text.startswith("# Tuned by psnr of the samples (1 sample per image, 2 images of the task's images, seed 0)")
    assert text.partition("\n")[2].split() == TASK.replace("weight: 0.5", "weight: 0.06").split()
    assert sample_condition.main(["--task_config", "tuned.yaml", "--limit", "1"]) == 0
    table = Path("results/tune/task/table.md").read_text()
    assert table in out and table.count("\n") == 5
    for weight, mean in means.items():
        row, = (line for line in table.splitlines() if f"| {weight} |" in line or f"| **{weight}** |" in line)
        assert f"{mean:.2f} [" in row and ("**" in row) == (weight == "0.06") and "2" in row.split("|")[-2]
    assert "warning: the best" not in err


def test_an_edge_of_the_grid_is_warned_of(run, in_process):
    status, _, err = run("--grid", "measurement.noise.sigma=0.2,0.4", "--limit", "1", "--by", "psnr")
    assert status == 0 and len(in_process) == 6
    assert "the best measurement.noise.sigma is 0.2, the smallest of the grid; add smaller values" in err


def test_what_is_there_is_not_run_again(run, in_process):
    assert run("--limit", "1")[0] == 0
    first = Path("tuned.yaml").read_bytes()
    status, _, err = run("--limit", "1")
    assert status == 2 and "tuned.yaml is there already" in err and "--overwrite" in err
    assert len(in_process) == 3
    status, out, _ = run("--limit", "1", "--overwrite")
    assert status == 0 and "3 of them finished before" in out and len(in_process) == 3
    assert Path("tuned.yaml").read_bytes() == first
    assert run("--limit", "1", "--overwrite", "--grid", "conditioning.params.after=lift")[0] == 0
    assert len(in_process) == 6


def test_results_of_other_settings_are_replaced_only_if_they_may(run):
    assert run("--limit", "1")[0] == 0
    status, _, err = run("--limit", "1", "--seed", "4", "--out", "other.yaml")
    assert status == 2 and "results of another configuration" in err and not Path("other.yaml").exists()
    assert run("--limit", "1", "--seed", "4", "--out", "other.yaml", "--overwrite")[0] == 0
    assert "seed 4" in Path("other.yaml").read_text()


def test_the_network_that_was_given_is_named(run):
    """Not where the options were left out."""
    assert run("--limit", "1", "--model_config", "configs/demo_faces_model_config.yaml")[0] == 0
    tuned = read_yaml("tuned.yaml")
    assert tuned["model_config"] == "configs/demo_faces_model_config.yaml" and "diffusion_config" not in tuned


def test_the_task_file_itself_is_replaced_only_when_told_so(run):
    assert run("--limit", "1", "--out", "task.yaml")[0] == 2
    assert Path("task.yaml").read_text() == TASK
    assert run("--limit", "1", "--out", "task.yaml", "--overwrite")[0] == 0
    assert "weight: 0.06" in Path("task.yaml").read_text() and "# far too much" in Path("task.yaml").read_text()


def test_an_interrupted_grid_continues(run, interrupted):
    status, _, err = run("--limit", "1")
    assert status == 130 and "1 of 3 runs are finished" in err and not Path("tuned.yaml").exists()
    assert run("--limit", "1")[0] == 0 and len(interrupted) == 4


def test_a_point_that_fails_leaves_the_others(run, monkeypatch):
    working = job.launch

    def failing(command, *arguments):
        return working(command, *arguments) if "weight=0.01" in " ".join(command) else (2, ["error: no such thing"])

    monkeypatch.setattr(job, "launch", failing)
    status, out, err = run("--limit", "1")
    assert status == 1 and "2 of 3 runs went wrong" in err
    assert out.count("FAILED: no such thing") == 2
    assert "weight: 0.01" in Path("tuned.yaml").read_text()


def test_without_ground_truth_the_chi_square_decides(run):
    assert sample_condition.main(["--task_config", "task.yaml", "--set", "conditioning={method: lift}"]) == 0
    status, out, err = run("--data", "results/noise/lift/input", "--set", "measurement.observed=true")
    assert status == 0, err
    assert "the best by chi_square" in out and "PSNR" not in Path("results/tune/task/table.md").read_text()
    chi = {weight: sum(float(row["chi_square"]) for row in measured(f"results/tune/task/weight={weight}")) / 2
           for weight in ("0.01", "0.06", "0.5")}
    nearest = min(chi, key=lambda weight: abs(chi[weight] - 1))
    assert f"weight: {nearest} " in Path("tuned.yaml").read_text()
    assert "observed: true" in Path("tuned.yaml").read_text()


def test_samples_or_their_mean(run):
    assert run("--limit", "1", "--samples", "2", "--of", "mean")[0] == 0
    assert "mean of the samples (2 samples per image" in Path("tuned.yaml").read_text()
    assert {row["sample"] for row in measured("results/tune/task/weight=0.5")} == {"0", "1", "mean"}
    assert run("--of", "mean", "--out", "b.yaml")[0] == 2


def test_overrides_go_into_the_task_where_they_belong(run):
    assert run("--limit", "1", "--set", "diffusion.timestep_respacing=3", "--set", "measurement.noise.sigma=0.1",
               "--set", "conditioning.params.after=lift", "--set", "data.image_size=8")[0] == 0
    tree = yaml.safe_load(Path("tuned.yaml").read_text())
    assert tree["measurement"]["noise"]["sigma"] == 0.1 and tree["conditioning"]["params"]["after"] == "lift"
    assert "diffusion" not in tree and "# on the [-1, 1] scale" in Path("tuned.yaml").read_text()
    assert tree["data"]["image_size"] == 32                     # not 8, that of the images that it was tuned on
    assert "with diffusion.timestep_respacing=3,data.image_size=8" in Path("tuned.yaml").read_text()


def test_by_a_figure_that_no_run_has_nothing_can_be_chosen(run, in_process):
    status, _, err = run("--by", "lpips", "--limit", "1")
    assert status == 2 and "--by lpips: vgg16-397923af.pth is not there, 'python -m util.fetch vgg16' gets it" in err
    assert not in_process                                               # told before anything is run
    assert run("--limit", "1")[0] == 0
    status, _, err = run("--by", "lpips", "--limit", "1", "--out", "other.yaml")
    assert status == 2 and "nothing can be chosen by lpips" in err and "psnr or ssim or st_lpips or chi_square" in err


@pytest.mark.parametrize("options, words", [
    (["--grid", "conditioning.parms.weight=1"], ["unknown key 'parms'; did you mean 'params'"]),
    (["--grid", "conditioning.params.wieght=1"], ["unknown key 'wieght'; did you mean 'weight'"]),
    (["--grid", "conditioning.params.after=lift,wiener"], ['after="wiener": ', "needs a convolution"]),
    (["--grid", "conditioning.method=total_variation,ps"], ['method="ps": ', "unknown key 'weight'"]),
    (["--grid", "measurement.noise.sigma=0.1,-1"], ["sigma=-1: ", "expected a finite number, 1e-15"]),
    (["--set", "diffusion.timestep_respacing=5000"], ["5000"]),
    (["--set", "model.num_chanels=3"], ["did you mean 'num_channels'"]),
    (["--gpu", "9"], ["--gpu 9"]),
    (["--out", "."], ["--out . is a folder"]),
    (["--out", "task.yaml/tuned.yaml"], ["--out task.yaml/tuned.yaml cannot be written"]),
    (["--grid", "diffusion.steps=2"], ["cannot be tuned", "conditioning"]),
    (["--data", "nowhere"], ["'nowhere' not found"]),
    (["--by", "fid"], ["fid", "chi_square"]),
    (["--weights_dir", "nowhere"], ["nowhere"]),
    (["--task_config", "none.yaml"], ["none.yaml not found"]),
    (["--taks_config", "none.yaml"], ["did you mean '--task_config'"]),
    (["--task_config", "broken.yaml"], ["broken.yaml, line 3"]),
    (["--task_config", "evil.yaml"], ["evil.yaml, line 1", "!!python/object/apply:os.mkdir is refused"]),
    (["--task_config", "bomb.yaml"], ["bomb.yaml, line", "more than"]),
    (["--task_config", "large.yaml"], ["large.yaml", "is it the right one?"]),
    (["--task_config", "latin.yaml"], ["latin.yaml is no text file"]),
    (["--model_config", "evil.yaml"], ["!!python/object/apply:os.mkdir is refused"]),
    (["--set", "data.root=!!python/object/apply:os.mkdir [mark]"], ["--set", "is refused"]),
    (["--set", "data.root=[1"], ["--set", "line 1"]),
    (["--grid", "conditioning.method=!!python/object/apply:os.mkdir [mark]"], ["--grid", "is refused"]),
    (["--grid", "conditioning.method=[1"], ["--grid", "line 1"]),
    (["--grid", "conditioning.method=2024-01-01"], ["'2024-01-01'"]),
    (["--grid", "conditioning.method=!!set {a}"], ["--grid", "is refused"]),
])
def test_mistakes_end_with_status_2(run, in_process, options, words):
    Path("broken.yaml").write_text("conditioning:\n  method: [lift\n")
    Path("evil.yaml").write_text("conditioning: !!python/object/apply:os.mkdir [mark]\n")
    Path("bomb.yaml").write_text("\n".join(["a0: [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]"
                                                         for i in range(1, 9))]).replace("a0:", "a0: &a0"))
    Path("large.yaml").write_bytes(b"# \n" * 2 ** 18)
    Path("latin.yaml").write_bytes(b"conditioning: \xff\n")
    status, _, err = run(*options)
    assert not in_process                                             # all is found before anything is run
    assert status == 2 and "Traceback" not in err and not Path("tuned.yaml").exists()
    assert not Path("mark").exists()
    assert all(word in err for word in words), err
