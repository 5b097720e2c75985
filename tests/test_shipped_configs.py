"""Every YAML file under configs/ is read, its parts are built, and every task runs end to end with a tiny network."""

import json
import re
from pathlib import Path

import pytest

import sample_condition
from guided_diffusion.condition_methods import get_conditioning_method
from guided_diffusion.gaussian_diffusion import create_sampler
from guided_diffusion.measurements import OPERATORS, get_noise, get_operator
from guided_diffusion.method import CONDITIONING_METHODS as METHODS
from guided_diffusion.priors.load import check_model
from util.config.config import REPOSITORY, Config, load_config, read_yaml
from util.config.registry import defaults
from util.errors import UserError
from util.seeding import ImageRandomness

CONFIGS = REPOSITORY / "configs"
FILES = {str(path.relative_to(CONFIGS)): read_yaml(path) for path in sorted(CONFIGS.rglob("*.yaml"))}
TASKS = [name for name, tree in FILES.items() if "measurement" in tree]


def kind(name: str) -> str:
    """What tasks have in common that run alike: all but images and numbers; of settings and of tuned solvers, which are
    there for several operators, the operator neither."""
    tree, of_many = FILES[name], name.count("/") > 1
    parts = tree["conditioning"], tree["measurement"]["noise"] if of_many else tree["measurement"]
    return re.sub(r"-?\d[\d.e-]*", "0", json.dumps(parts))


RUNS = {kind(name): name for name in TASKS}
SETTINGS = sorted({str(Path(name).parent) for name in TASKS if name.startswith("settings/")})
MADE_FOR_FACES = [name for name in TASKS if name.startswith("demo_faces") or re.match("solvers/.*/", name)]
every_task = pytest.mark.parametrize("name", TASKS)


def load(name: str, *overrides: str) -> Config:
    return load_config("configs/demo_model_config.yaml", "configs/demo_diffusion_config.yaml", f"configs/{name}",
                       overrides)


def needs_absent_weights(config: Config) -> bool:
    files = [config.operator.params.get("model_path"), config.conditioning.params.get("wizard"),
             config.conditioning.params.get("generator")]
    return any(file is not None and not (REPOSITORY / file).exists() for file in files)


def smaller(config: Config) -> list[str]:
    """Overrides for what does not fit into 32 pixels, or takes long."""
    options = config.operator.params.get("mask_opt", {})
    iterates = "iterations" in defaults(METHODS[config.conditioning.name])
    fewer = ["--set", "conditioning.params.iterations=5"] * iterates
    if "mask_len_range" not in options:
        return fewer
    return ["--set", "measurement.mask_opt.mask_len_range=[8, 12]", "--set", "measurement.mask_opt.margin=[2, 2]",
            *fewer]


@pytest.mark.parametrize("name", MADE_FOR_FACES)
def test_tasks_for_faces_take_the_prior_of_faces(name):
    prior = "demo_faces_128" if name.startswith("demo_faces_128") else "demo_faces"
    assert load_config(None, None, f"configs/{name}").model["model_path"] == f"models/{prior}.pt"


@every_task
def test_the_parts_of_every_task_are_built(name):
    config = load(name)
    noiser = get_noise(config.noise.name, **config.noise.params)
    method = get_conditioning_method(config.conditioning.name, **config.conditioning.params)
    if needs_absent_weights(config):
        with pytest.raises(UserError, match="not found.*links GOPRO_wo?VAE.pth"):
            method.check(get_operator(config.operator.name, **config.operator.params), noiser)
        return
    operator = get_operator(config.operator.name, **config.operator.params)
    method.check(operator, noiser)
    operator.prepare((1, 3, 256, 256), ImageRandomness(0, ["image"], purpose="operator"))


@pytest.mark.parametrize("name", RUNS.values())
def test_every_task_runs_end_to_end(name, prior, workplace, capsys):
    config = load(name)
    if needs_absent_weights(config):
        pytest.skip("its weights are not here")
    exact = METHODS[config.conditioning.name].needs_exact_prior
    size = 128 if config.operator.name == "nonlinear_blur" else 16 if exact else 32
    model = "configs/exact_gaussian_model_config.yaml" if exact else str(prior / "model.yaml")
    status = sample_condition.main([
        "--model_config", model, "--task_config", f"configs/{name}", "--data", "skimage",
        "--limit", "1", "--set", "diffusion.timestep_respacing=2", "--set", f"model.image_size={size}",
        *smaller(config)])
    assert status == 0, capsys.readouterr().err
    assert (workplace / "results" / config.operator.name / config.conditioning.name / "recon/astronaut.png").is_file()


@pytest.mark.parametrize("name", [name for name, tree in FILES.items()
                                  if {"num_channels", "prior", "format"} & set(tree)])
def test_every_model_file_describes_a_prior(name):
    check_model(FILES[name])


@pytest.mark.parametrize("name", [name for name, tree in FILES.items() if "sampler" in tree])
def test_every_diffusion_file_builds_a_sampler(name):
    assert create_sampler(**FILES[name]).num_steps >= 20


def test_every_operator_has_a_task_file():
    operators = {tree["measurement"]["operator"]["name"] for name, tree in FILES.items() if name in TASKS}
    assert operators >= set(OPERATORS) - {"noise", "blur"}
    assert set(SETTINGS) == {f"settings/{setting}" for setting in (
        "dpps_ffhq_gaussian", *(f"{source}_{data}_{noise}" for source in ("paper", "release")
                                for data in ("ffhq", "imagenet") for noise in ("gaussian", "poisson")))}


@every_task
def test_task_files_take_the_images_own_size(name):
    measurement = FILES[name]["measurement"]
    assert "in_shape" not in measurement["operator"]
    assert "image_size" not in measurement.get("mask_opt", {})


# The named settings, against the numbers of the papers and of the released code

ZETA = {                                            # DPS, appendix D: zeta' of SR, inpainting, Gaussian and motion blur
    "ffhq_gaussian": (1.0, 1.0, 1.0, 1.0), "imagenet_gaussian": (1.0, 1.0, 0.4, 0.6),
    "ffhq_poisson": (0.3, None, 0.3, 0.3), "imagenet_poisson": (0.3, None, 0.3, 0.3),
}
LINEAR = ("super_resolution", "inpainting", "gaussian_deblur", "motion_deblur")


def setting(name: str, task: str) -> Config:
    return load(f"settings/{name}/{task}_config.yaml")


@pytest.mark.parametrize("case", ZETA)
def test_settings_of_the_paper(case):
    for task, zeta in zip(LINEAR, ZETA[case], strict=True):
        if zeta is None:
            continue
        config = setting(f"paper_{case}", task)
        params = config.conditioning.params
        assert (config.conditioning.name, config.data.name) == ("ps", case.partition("_")[0])
        if case.endswith("gaussian"):
            assert params["scale"] == 2 * zeta and params.get("likelihood", {}).get("power", 1) == 1
            assert get_noise(config.noise.name, **config.noise.params).sigma == 0.1           # 0.05 on [0, 1]
        else:
            assert params == {"scale": pytest.approx(2 * zeta / 255 ** 0.5, rel=1e-3),
                              "likelihood": {"name": "point", "power": 0.5}}
            assert config.noise.params == {"rate": 1.0, "likelihood": "shot"}
    if case.endswith("gaussian"):
        random, box = (setting(f"paper_{case}", task).operator.params for task in ("inpainting", "box_inpainting"))
        assert random["observed_only"] and random["mask_opt"]["mask_prob_range"] == [0.92, 0.92]
        assert box["observed_only"] and box["mask_opt"]["mask_len_range"] == [128, 128]


def test_nonlinear_settings_of_the_paper():
    for task, zeta in (("phase_retrieval", 0.4), ("nonlinear_deblur", 1.0)):
        config = setting("paper_ffhq_gaussian", task)
        assert config.conditioning.params == {"scale": 2 * zeta}
        assert config.noise.params == {"sigma": 0.05, "range": [0, 1]}


@pytest.mark.parametrize("case", ZETA)
def test_settings_of_the_release(case):
    """The code's own task files; those with Poisson noise and those for ImageNet differ in noise and data alone."""
    for task in LINEAR:
        if case.endswith("poisson") and task == "inpainting":
            continue
        found, shipped = setting(f"release_{case}", task), load(f"{task}_config.yaml")
        assert (found.conditioning, found.operator) == (shipped.conditioning, shipped.operator)
        assert found.data.name == case.partition("_")[0]
        assert found.noise == shipped.noise or found.noise.params == {"rate": 1.0, "likelihood": "official"}
        assert found.noise.name == case.partition("_")[2]


@pytest.mark.parametrize("task", [*LINEAR, "phase_retrieval", "nonlinear_deblur"])
def test_the_plain_task_files_are_the_release(task):
    assert setting("release_ffhq_gaussian", task) == load(f"{task}_config.yaml")


@pytest.mark.parametrize("task, scale", list(zip(LINEAR, (1.0, 1.0, 0.4, 0.4), strict=True)))
def test_settings_of_dpps(task, scale):
    config = setting("dpps_ffhq_gaussian", task)
    assert (config.conditioning.name, config.conditioning.params) == ("dpps", {"scale": scale})
    assert config.noise.params == {"sigma": 0.01}
    assert task != "inpainting" or config.operator.params["mask_opt"]["mask_prob_range"] == [0.7, 0.9]


@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("settings/")])
def test_every_setting_says_what_it_is_and_which_prior_it_is_for(name):
    folder, data = Path(name).parent.name, FILES[name]["data"]["name"]
    comment = [line for line in (CONFIGS / name).read_text().splitlines() if line.startswith("# ")]
    assert comment[0].startswith(f"# {folder}: ")
    prior = "model_config.yaml" if data == "ffhq" else "imagenet_model_config.yaml"
    assert f"--model_config configs/{prior} " in comment[-1]
    assert ("What differs from" in comment[0]) == (not folder.startswith("release"))
