"""Code in configurations, checkpoints, pictures and results is not run."""

from pathlib import Path

import pytest
import torch

import sample_condition
from tests.command_line import arguments
from tests.hostile import open_run, save
from util.arrays import read_array
from util.errors import UserError
from util.img_utils import load_image


@pytest.fixture
def mark(tmp_path) -> Path:
    """A file that code of a hostile input would make."""
    return tmp_path / "mark"


@pytest.mark.parametrize("option", ["--model_config", "--diffusion_config", "--task_config"])
def test_no_configuration_runs_code(workplace, option, capsys, mark):
    Path("evil.yaml").write_text(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path "
                                 f"['{mark}']]\n")
    assert sample_condition.main([option, "evil.yaml"]) == 2
    assert "refused" in capsys.readouterr().err
    assert not mark.exists()


def test_a_checkpoint_with_code_ends_the_command_and_runs_nothing(prior, workplace, capsys, mark):
    class Trap:
        def __reduce__(self):
            return Path.touch, (mark,)

    torch.save({"weight": Trap()}, workplace / "evil.pt")
    assert sample_condition.main(arguments(prior, "--set", "model.model_path=evil.pt")) == 2
    err = capsys.readouterr().err
    assert "was refused and nothing in it was run" in err and "Traceback" not in err
    assert not mark.exists()


def test_no_format_that_runs_other_programs_is_decoded(tmp_path, mark):
    postscript = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({mark}) (w) file closefile showpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(postscript)
    for read in (load_image, lambda path: read_array(str(path), "kernel")):
        with pytest.raises(UserError, match="cannot"):
            read(tmp_path / "a.png")
    assert not mark.exists()


def test_results_with_tags_are_not_constructed(tmp_path, mark):
    directory = open_run(tmp_path)
    save(directory)
    text = f"!!python/object/apply:pathlib.Path.touch ['{mark}']\n"
    (directory.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="no configuration of ours"):
        open_run(tmp_path)
    assert not mark.exists()


def test_the_sources_have_no_unsafe_reader():
    root = Path(sample_condition.__file__).parent
    packages = ("util", "data", "guided_diffusion")
    for file in (root / "sample_condition.py", *(f for p in packages for f in (root / p).rglob("*.py"))):
        text = file.read_text(encoding="utf-8")
        for unsafe in ("yaml.unsafe_load", "yaml.full_load", "FullLoader", "weights_only=False", "allow_pickle=True",
                       "pickle.load", "shell=True", "os.system"):
            assert unsafe not in text, f"{file.name}: {unsafe}"
        assert text.count("torch.load(") == text.count("weights_only=True)"), file.name
        readers = text.count("np.load(") + text.count("format.read_array(")
        assert readers == text.count("allow_pickle=False)"), file.name
