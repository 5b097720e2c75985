"""Mistakes in the file of a table and on the command line, found before anything is run."""

from pathlib import Path

import pytest
import yaml

from util.errors import UserError
from util.reproduce_table.spec import load_table


@pytest.mark.parametrize("keys, value, words", [
    (["titel"], "x", ["'titel'", "did you mean 'title'"]),
    (["metrics"], ["psnr", "sim"], ["'sim'", "did you mean 'ssim'"]),
    (["metrics"], [], ["metrics is empty"]),
    (["metrics"], ["psnr", "lpips", "lpips_vgg"], ["lpips and lpips_vgg are both called 'LPIPS (vgg)'"]),
    (["plot"], "pie", ["plot is 'pie'", "'bar', 'line'"]),
    (["plot"], "line", ["tasks.sr.x is None"]),
    (["limit"], 0, ["limit is 0", "1 or more"]),
    (["tasks", "sr", "confg"], "x", ["tasks.sr", "'confg'", "did you mean 'config'"]),
    (["tasks", "sr"], 3, ["tasks.sr is 3", "expected a mapping"]),
    (["tasks", "../up"], {"title": "x", "config": "y"}, ["'../up' names a folder"]),
    (["tasks", ".."], {"title": "x", "config": "y"}, ["'..' names a folder"]),
    (["tasks", "sr", "config"], "{settings}.yaml", ["methods.dps needs settings"]),
    (["methods", "dps", "methd"], "ps", ["methods.dps", "did you mean 'method'"]),
    (["methods", "dps", "tasks"], ["nois"], ["unknown name 'nois'", "did you mean 'noise'"]),
    (["methods", "dps", "tasks"], [], ["methods.dps.tasks is empty", "leave it out"]),
    (["methods", "dps", "method"], "", ["SR, DPS", "method is None, expected a name"]),
    (["methods", "dps", "settings"], "mine", ["methods.dps.settings is 'mine'", "has {settings}"]),
    (["methods", "free", "title"], "DPS", ["dps and free are both called 'DPS'"]),
    (["methods", "free", "title"], "", ["methods.free: title is ''"]),
    (["tasks", "sr", "title"], "S\nR", ["tasks.sr: title is 'S\\nR', expected a line of text"]),
    (["methods", "dps", "compare_with"], "othr", ["did you mean 'other'"]),
    (["methods", "dps", "params_of"], {"sr": 3}, ["methods.dps.params_of.sr is 3", "expected a mapping"]),
    (["paper", 0, "rows", "dpss"], {"row": "x", "values": [1, 2]}, ["did you mean 'dps'"]),
    (["methods", "free", "params_of"], {"noise": {}}, ["methods.free.params_of", "unknown name 'noise'"]),
    (["paper", 0, "rows", "dps", "std"], [-1.0, None], ["std is [-1.0, None]", "0 or more"]),
    (["paper", 0, "metrics"], ["psnr", "psnr"], ["paper[0].metrics", "'psnr' stands twice"]),
    (["paper", 0, "rows", "dps", "values"], [1.0], ["1 values and 1 std, expected 2"]),
    (["paper", 0, "rows", "dps", "values"], ["a", 1.0], ["values is ['a', 1.0]"]),
    (["paper", 0, "source"], None, ["paper[0]", "source is None"]),
    (["methods"], {}, ["paper[0]"]),
    (["reference"], "dsp", ["reference", "did you mean 'dps'"]),
    (["reference"], "other", ["reference", "unknown name 'other'", "choose from dps, free"]),
    (["metrics"], ["relative_seconds"], ["relative_seconds are those of a run over the reference's"]),
    (["scatter"], [["psnr", "sim"]], ["scatter", "did you mean 'ssim'"]),
    (["scatter"], [["psnr", "ssim"]], ["scatter takes pairs of metrics, [x, y], and a reference"]),
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
    (["--tasks", "nois"], ["--tasks: unknown name 'nois'", "did you mean 'noise'"]),
    (["--picture", "chelse"], ["--picture: the data have no image 'chelse'", "did you mean 'chelsea'"]),
    (["--limt", "3"], ["'--limt'", "did you mean '--limit'"]),
    (["--limit", "0"], ["--limit", "1 or more"]),
    (["--seed", "-1"], ["--seed"]),
    (["--nproc", "two"], ["--nproc"]),
    (["--launcher", "nowhere --x"], ["--launcher", "no such program"]),
    (["--weights_dir", "nowhere"], ["--weights_dir", "'nowhere' not found"]),
    (["--data", "nowhere"], ["'nowhere' not found"]),
    (["--set", "measurment.noise.sigma=1"], ["'measurment'", "did you mean 'measurement'"]),
    (["--set", "conditioning.params.scal=1"], ["SR, DPS", "unknown key 'scal'", "did you mean 'scale'"]),
    (["--set", "conditioning.params.scale=-1"], ["SR, DPS", "scale is -1, expected a finite number, 0 or more"]),
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


def test_a_figure_that_is_printed_twice_is_a_mistake(run, tree):
    tree["metrics"] = ["lpips"]
    printed = {"source": "P, Table 1", "tasks": ["sr"], "metrics": ["lpips"],
               "rows": {"other": {"row": "O", "values": [0.3]}}}
    tree["paper"] = [printed, {**printed, "source": "P, Table 2", "metrics": ["lpips_vgg"]}]
    status, _, err = run("--dry_run")
    assert status == 2 and "paper[1] prints lpips_vgg, sr, other once more, after P, Table 1, row O" in err


def test_a_metric_that_has_no_better_side_has_no_front(run, tree):
    tree |= {"metrics": ["psnr", "chi_square"], "reference": "dps", "scatter": [["psnr", "chi_square"]], "paper": []}
    status, _, err = run("--dry_run")
    assert status == 2 and "of chi_square neither more nor less is better" in err


def test_a_figure_of_the_paper_is_found_by_the_other_name_of_its_metric(tree):
    tree["metrics"], tree["paper"][0]["metrics"] = ["lpips_vgg"], ["psnr", "lpips"]
    Path("tiny.yaml").write_text(yaml.safe_dump(tree))
    assert {cell.method: cell.paper.value for cell in load_table("tiny.yaml").cells if cell.paper} == {"other": 0.2}


def test_a_table_of_nothing_is_a_mistake(run, tree):
    tree["methods"], tree["paper"] = {"other": {"title": "Other"}}, []
    status, _, err = run("--dry_run")
    assert status == 2 and "nothing to show" in err
    tree["metrics"], tree["paper"] = ["fid"], [{"source": "P", "tasks": ["sr"], "metrics": ["psnr"],
                                                "rows": {"other": {"row": "O", "values": [1.0]}}}]
    status, _, err = run()
    assert status == 2 and "nothing to show" in err


def test_a_table_that_is_not_there():
    with pytest.raises(UserError, match=r"did you mean '.*demo.yaml'"):
        load_table("configs/tables/dmo.yaml")
