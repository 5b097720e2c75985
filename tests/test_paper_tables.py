"""The tables as they are shipped: every run is a valid command line, every figure stands where the paper prints it."""

import pytest

import sample_condition
from guided_diffusion.condition_methods import CONDITIONING_METHODS
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import NOISES, OPERATORS
from guided_diffusion.measurements.base import LinearOperator
from guided_diffusion.unet import create_model
from util.config.config import REPOSITORY
from util.config.registry import check_arguments
from util.reproduce_table.job import Options
from util.reproduce_table.spec import load_table

TABLES = sorted((REPOSITORY / "configs/tables").glob("*.yaml"))


def table_of(name: str):
    return load_table(REPOSITORY / f"configs/tables/{name}.yaml")


def figure(name: str, metric: str, task: str, method: str):
    cell, = [c for c in table_of(name).cells if (c.metric, c.task, c.method) == (metric, task, method)]
    return cell.paper


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_run_of_a_shipped_table_is_a_valid_command_line(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    table = load_table(path)
    assert table.runs and table.cells
    for run in table.runs:
        config = run.load(table.spec.data)
        check_arguments(create_model, config.model, "model")
        create_sampler(**config.diffusion)
        check_arguments(OPERATORS[config.operator.name], config.operator.params, str(run))
        noiser = NOISES.build(config.noise.name, **config.noise.params)
        method = CONDITIONING_METHODS.build(config.conditioning.name, **config.conditioning.params)
        assert issubclass(OPERATORS[config.operator.name], LinearOperator) or not method.needs_linear, run
        likelihood = config.conditioning.params.get("likelihood", {})
        assert "inverse_variance" not in str(likelihood) or noiser.name == "gaussian"
        assert config.conditioning.name == table.methods[run.method].method
        arguments = sample_condition.parse_arguments([*run.options(), *Options("skimage", 3, 5, 2, 1, 0).arguments()])
        assert (arguments.overrides, arguments.seed, arguments.limit) == (list(run.overrides), 3, 5)
    for cell in table.cells:
        assert cell.run in (None, *table.runs)
        assert cell.paper is None or cell.paper.source.startswith("DPS, ") and ", row " in cell.paper.source


@pytest.mark.parametrize("name, metric, task, method, value, source", [
    ("dps_ffhq_linear", "fid", "sr4", "dps", 39.35, "DPS, Table 1, row DPS (ours)"),
    ("dps_ffhq_linear", "lpips", "random", "ddrm", 0.587, "DPS, Table 1, row DDRM"),
    ("dps_ffhq_linear", "fid", "motion", "mcg", 310.5, "DPS, Table 1, row MCG"),
    ("dps_ffhq_linear", "psnr", "box", "pnp_admm", 11.65, "DPS, Table 6, row PnP-ADMM"),
    ("dps_ffhq_linear", "ssim", "motion", "admm_tv", 0.758, "DPS, Table 6, row ADMM-TV"),
    ("dps_ffhq_linear", "fid", "sr4", "dps_release", 39.35, "DPS, Table 1, row DPS (ours)"),
    ("dps_imagenet_linear", "lpips", "gauss", "score_sde", 0.667, "DPS, Table 2, row Score-SDE (ILVR)"),
    ("dps_imagenet_linear", "psnr", "motion", "dps", 20.55, "DPS, Table 7, row DPS (ours)"),
    ("dps_phase_retrieval", "lpips", "phase", "hio", 0.542, "DPS, Table 3, row HIO"),
    ("dps_nonuniform_deblur", "fid", "nonuniform", "dps", 41.86, "DPS, Table 4, row DPS (ours)"),
    ("dps_step_size", "lpips", "zeta_1", "exponential", 0.442, "DPS, Table 5, row exponential decay"),
    ("dps_runtime", "seconds", "time", "bks_stylegan2", 891.8, "DPS, appendix C.5, runtime table, row BKS-styleGAN2"),
])
def test_figures_stand_where_the_paper_prints_them(name, metric, task, method, value, source):
    found = figure(name, metric, task, method)
    assert (found.value, found.source) == (value, source)


def test_what_the_paper_does_not_print_is_absent():
    cells = {(c.metric, c.task, c.method): c for c in table_of("dps_ffhq_linear").cells}
    assert ("fid", "motion", "ddrm") not in cells                       # a dash in the paper, and nothing of ours
    assert cells["fid", "sr4", "dpps"].paper is None
    assert cells["fid", "sr4", "ddrm"].run is not None
    assert sum(c.paper is not None and c.method != "dps_release" for c in cells.values()) == 2 * (6 * 10 - 2)
    for name in ("dps_nfe", "dpps_ablations", "demo", "demo_baselines"):
        assert all(cell.paper is None for cell in table_of(name).cells)


def test_the_step_size_table_converts_zeta_and_prints_the_spread():
    table = table_of("dps_step_size")
    runs = {(run.task, run.method): run.load("skimage").conditioning.params for run in table.runs}
    assert runs["zeta_1", "constant"]["scale"] == 2.0 and runs["zeta_0.3", "linear"]["scale"] == 0.6
    assert runs["zeta_1", "exponential"]["likelihood"]["schedule"] == "exponential"
    assert runs["inverse_variance", "inverse_variance"] == {
        "scale": 1.0, "likelihood": {"name": "point", "schedule": "inverse_variance", "power": 2}}
    assert figure("dps_step_size", "lpips", "zeta_1", "constant").std == 0.045


def test_parameters_of_a_task_join_those_of_the_row():
    found = {run.task: run.load("skimage").conditioning.params for run in table_of("dps_ffhq_linear").runs
             if run.method == "admm_tv"}
    assert found["sr4"] == {"lam": 0.027, "rho": 0.01} and found["gauss"] == {"lam": 0.027, "rho": 0.14}
    nlm, = (run for run in table_of("demo_faces").runs if (run.method, run.task) == ("nlm", "box"))
    assert nlm.load(None).conditioning.params == {"h": 0.02, "after": "biharmonic"}         # a row without `params`
