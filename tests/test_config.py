"""Configuration files: DPS's own load unchanged, and every mistake is named before anything is built."""

import dataclasses
from pathlib import Path

import pytest

from util.config.config import DEMO, REPOSITORY, Choice, Config, find_file, load_config, read_yaml
from util.errors import UserError

MODEL = "image_size: 256\nnum_channels: 128\nnum_res_blocks: 1\nmodel_path: models/ffhq_10m.pt\n"
DIFFUSION = "sampler: ddpm\nsteps: 1000\nnoise_schedule: linear\ntimestep_respacing: 1000\n"
SUPER_RESOLUTION = """
conditioning:
    method: ps
    params:
        scale: 0.3
data:
    name: ffhq
    root: ./data/samples/
measurement:
    operator:
        name: super_resolution
        in_shape: !!python/tuple [1, 3, 256, 256]
        scale_factor: 4
    noise:
        name: gaussian
        sigma: 0.05
"""
INPAINTING = """
conditioning:
    method: ps
    params: {scale: 0.5}
data: {name: ffhq, root: ./data/samples/}
measurement:
    operator: {name: inpainting}
    mask_opt:
        mask_type: random
        mask_prob_range: !!python/tuple [0.3, 0.7]
        image_size: 256
    noise: {name: gaussian, sigma: 0.05}
"""
BLUR = """
conditioning: {method: ps, params: {scale: 0.3}}
data: {name: ffhq, root: ./data/samples/}
measurement:
    operator: {name: NAME, kernel_size: 61, intensity: INTENSITY}
    noise: {name: gaussian, sigma: 0.05}
"""


@pytest.fixture
def load(tmp_path: Path):
    """load(task text, *overrides) -> Config, from files in a folder of their own."""
    def load(task: str = SUPER_RESOLUTION, *overrides: str, data: str | None = None, model: str = MODEL,
             diffusion: str = DIFFUSION) -> Config:
        texts = {"model.yaml": model, "diffusion.yaml": diffusion, "task.yaml": task}
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        return load_config(*(tmp_path / name for name in texts), overrides, data)
    return load


def test_dps_super_resolution_file_loads_unchanged(load):
    config = load(SUPER_RESOLUTION)
    assert config.operator == Choice("super_resolution", {"in_shape": (1, 3, 256, 256), "scale_factor": 4})
    assert config.noise == Choice("gaussian", {"sigma": 0.05})
    assert config.conditioning == Choice("ps", {"scale": 0.3})
    assert config.data == Choice("ffhq", {"root": "./data/samples/"})
    assert config.model["num_channels"] == 128
    assert config.diffusion["timestep_respacing"] == 1000


def test_dps_inpainting_file_gives_its_mask_options_to_the_operator(load):
    assert load(INPAINTING).operator == Choice("inpainting", {"mask_opt": {
        "mask_type": "random", "mask_prob_range": (0.3, 0.7), "image_size": 256}})


@pytest.mark.parametrize("shipped, task", [
    ("super_resolution_config.yaml", SUPER_RESOLUTION),
    ("inpainting_config.yaml", INPAINTING),
    ("gaussian_deblur_config.yaml", BLUR.replace("NAME", "gaussian_blur").replace("INTENSITY", "3.0")),
    ("motion_deblur_config.yaml", BLUR.replace("NAME", "motion_blur").replace("INTENSITY", "0.5")),
])
def test_shipped_task_files_say_what_the_files_of_dps_say(load, tmp_path, shipped, task):
    """But for `in_shape` and `image_size`: the images' own shape is taken."""
    original = load(task).as_dict()
    original["measurement"]["operator"].pop("in_shape", None)
    original["measurement"]["operator"].get("mask_opt", {}).pop("image_size", None)
    ours = load_config(tmp_path / "model.yaml", tmp_path / "diffusion.yaml", f"configs/{shipped}").as_dict()
    assert ours == original


def test_every_shipped_file_is_read():
    files = sorted((REPOSITORY / "configs").rglob("*.yaml"))
    assert {"model_config.yaml", "imagenet_model_config.yaml", "diffusion_config.yaml"} < {f.name for f in files}
    for file in files:
        assert read_yaml(file)


def test_default_files_are_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_file("configs/model_config.yaml", "x") == REPOSITORY / "configs/model_config.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/model_config.yaml").write_text("image_size: 8")
    assert read_yaml("configs/model_config.yaml") == {"image_size": 8}


def test_a_task_names_the_network_and_the_process_it_is_made_for(tmp_path):
    """What an option gives counts instead; without both it is the demo's."""
    texts = {"a.yaml": MODEL, "b.yaml": MODEL.replace("256", "64"), "fast.yaml": DIFFUSION.replace("1000", "50"),
             "task.yaml": f"model_config: {tmp_path}/b.yaml\ndiffusion_config: {tmp_path}/fast.yaml{SUPER_RESOLUTION}",
             "plain.yaml": SUPER_RESOLUTION}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    named = load_config(None, None, tmp_path / "task.yaml")
    assert (named.model["image_size"], named.diffusion["timestep_respacing"]) == (64, 50)
    assert named.origins["model", "image_size"] == f"{tmp_path}/b.yaml"
    given = load_config(tmp_path / "a.yaml", None, tmp_path / "task.yaml")
    assert (given.model["image_size"], given.diffusion["timestep_respacing"]) == (256, 50)
    (tmp_path / "lost.yaml").write_text(f"model_config: nowhere.yaml{SUPER_RESOLUTION}")
    with pytest.raises(UserError, match=r"model configuration, which .*/lost.yaml names, nowhere.yaml not found"):
        load_config(None, None, tmp_path / "lost.yaml")
    plain = load_config(None, None, tmp_path / "plain.yaml")
    assert (plain.model, plain.diffusion) == (read_yaml(DEMO["model"]), read_yaml(DEMO["diffusion"]))


def test_config_is_frozen_and_its_dictionary_is_a_copy(load):
    config = load()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.noise = Choice("clean", {})
    config.as_dict()["measurement"]["noise"]["sigma"] = 7
    assert config.noise.params["sigma"] == 0.05


@pytest.mark.parametrize("text, value", [
    ("1e-3", 0.001), ("-2E5", -2e5), ("1.5e+2", 150.0), ("0.4", 0.4), ("7", 7), ("ddim100", "ddim100"),
    ("10,20", "10,20"), ("[1, 2]", [1, 2]), ("true", True), ("", None), ("null", None), ("'1e-3'", "1e-3"),
    ("2e", "2e"), ("e5", "e5"),
])
def test_values_of_set_are_yaml(load, text, value):
    result = load(SUPER_RESOLUTION, f"conditioning.params.scale={text}").conditioning.params["scale"]
    assert result == value
    assert type(result) is type(value)


def test_set_reaches_all_three_files_and_the_last_one_wins(load):
    config = load(INPAINTING, "diffusion.timestep_respacing=100", "model.model_path=a=b.pt",
                  "conditioning.method=dpps", "conditioning.params.max_candidates=20",
                  "measurement.mask_opt.mask_type=box", "measurement.noise={name: poisson, rate: 2}",
                  "data.root=x", "data.root=y")
    assert config.diffusion["timestep_respacing"] == 100
    assert config.model["model_path"] == "a=b.pt"
    assert config.conditioning == Choice("dpps", {"scale": 0.5, "max_candidates": 20})
    assert config.operator.params["mask_opt"]["mask_type"] == "box"
    assert config.noise == Choice("poisson", {"rate": 2})
    assert config.data.params == {"root": "y"}


def test_set_adds_a_section_that_the_file_lacks(load):
    task = SUPER_RESOLUTION.replace("    params:\n        scale: 0.3\n", "")
    assert load(task).conditioning == Choice("ps", {})
    assert load(task, "conditioning.params.scale=2").conditioning == Choice("ps", {"scale": 2})
    assert load(task.replace("method: ps", "method: ps\n    params:")).conditioning == Choice("ps", {})


@pytest.mark.parametrize("data, expected", [
    ("skimage", Choice("skimage", {})), ("photos", Choice("folder", {"root": "photos"})),
])
def test_data_replaces_the_section(load, data, expected):
    assert load(data=data).data == expected


@pytest.mark.parametrize("override, words", [
    ("conditioning.params.scale", ["key.path=value"]),
    ("=3", ["key.path=value"]),
    ("conditioning..scale=3", ["key.path=value"]),
    ("conditoning.method=ps", ["'conditoning'", "did you mean 'conditioning'"]),
    ("conditioning.metod=ps", ["'metod'", "did you mean 'method'"]),
    ("measurement.nois.sigma=1", ["'nois'", "did you mean 'noise'"]),
    ("conditioning.method.name=1", ["conditioning.method is 'ps'"]),
    ("conditioning.params.scale=[1", ["line 1"]),
    ("conditioning.params.scale=!!python/object/apply:os.getcwd []", ["!!python/object/apply:os.getcwd", "refused"]),
    ("conditioning=3", ["conditioning is 3", "mapping"]),
    ("conditioning.method=3", ["method is 3", "name"]),
    ("measurement.operator=blur", ["measurement.operator is 'blur'", "mapping"]),
    ("measurement.noise={}", ["(with --set measurement.noise): measurement.noise", "'name' is missing"]),
    ("data=null", ["(with --set data): data is empty"]),
])
def test_mistakes_in_set_are_named(load, override, words):
    with pytest.raises(UserError) as caught:
        load(SUPER_RESOLUTION, override)
    check_message(caught.value, words)


@pytest.mark.parametrize("task, words", [
    (SUPER_RESOLUTION.replace("conditioning:", "conditionin:"), ["'conditionin'", "did you mean 'conditioning'"]),
    (SUPER_RESOLUTION.replace("noise:", "noisee:"), ["measurement", "'noisee'", "did you mean 'noise'"]),
    (SUPER_RESOLUTION.replace("method: ps", "methd: ps"), ["'methd'", "did you mean 'method'"]),
    (SUPER_RESOLUTION.replace("        name: gaussian\n", ""), ["measurement.noise: 'name' is missing; found sigma"]),
    (SUPER_RESOLUTION.partition("measurement:")[0], ["'measurement' is missing"]),
    ("- a\n- b\n", ["top level", "mapping"]),
    ("", ["top level is empty", "mapping"]),
    ("just words", ["top level", "mapping"]),
    ("a: 1\nb: [1, 2\nc: 3\n", ["task.yaml, line 3"]),
    ("a: 1\n\tb: 2\n", ["task.yaml, line 2"]),
    ("data: {name: a}\ndata: {name: b}\n", ["line 2", "'data'", "twice"]),
    ("data: {root: a, root: b}\n", ["line 1", "'root'", "twice"]),
    ("1: x\n", ["key 1"]),
    (f"model-config: x{SUPER_RESOLUTION}", ["'model-config'", "did you mean 'model_config'"]),
    (f"model_config: ''{SUPER_RESOLUTION}", ["model_config is ''", "name of a file"]),
    (f"model_config: 3{SUPER_RESOLUTION}", ["model_config is 3", "name of a file, such as configs/demo_model_config"]),
    (f"diffusion_config:{SUPER_RESOLUTION}", ["diffusion_config is None", "name of a file"]),
    ("a: &x [*x]\n", ["line 1", "recursive"]),
    ("a: " + "[" * 5000, ["line 1"]),
    ("a: !!int ''\n", ["not of its type"]),
    ("a: \x00\n", ["position"]),
])
def test_mistakes_in_a_file_are_named(load, task, words):
    with pytest.raises(UserError) as caught:
        load(task)
    check_message(caught.value, words)


@pytest.mark.parametrize("tag", [
    "!!python/object/apply:os.system ['touch MARK']",
    "!!python/object/new:os.system ['touch MARK']",
    "!!python/name:os.system ''",
    "!!python/module:os ''",
    "!!python/object:os.system {}",
    "!mine {a: 1}",
])
def test_a_file_with_code_is_refused_and_runs_nothing(load, tmp_path, tag):
    mark = tmp_path / "mark"
    with pytest.raises(UserError, match="line 1.*refused"):
        load("conditioning: " + tag.replace("MARK", str(mark)))
    assert not mark.exists()


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="modl_config.yaml not found; did you mean 'configs/model_config.yaml'"):
        find_file("configs/modl_config.yaml", "model configuration")
    with pytest.raises(UserError, match="imagenet_model.yaml not found; did you mean 'configs/imagenet_model_config.y"):
        find_file("imagenet_model.yaml", "model configuration")         # neither here nor in the repository's root
    with pytest.raises(UserError) as caught:        # the nearest are named, not all fifty
        find_file("configs/nothing_like_it.yaml", "model configuration")
    assert 20 < len(str(caught.value)) < 250
    with pytest.raises(UserError, match=r"ffhq_10m\.pt not found; choose from"):              # and no stranger
        find_file("models/ffhq_10m.pt", "checkpoint")
    with pytest.raises(UserError, match="is a folder"):
        find_file("configs", "model configuration")
    with pytest.raises(UserError, match="not found"):
        find_file(tmp_path / "nowhere" / "a.yaml", "model configuration")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match="no text"):
        read_yaml(tmp_path / "a.yaml")


def test_merge_keys_and_byte_order_marks_are_plain_yaml(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfbase: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["more"] == {"x": 1, "y": 3}


def check_message(error: UserError, words: list[str]) -> None:
    text = str(error)
    assert len(text.splitlines()) <= 2, text
    for word in words:
        assert word in text, text
