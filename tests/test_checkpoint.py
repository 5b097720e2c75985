"""Checkpoints load strictly and run nothing, or not at all."""

import hashlib
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from guided_diffusion.unet import create_model
from tests.helpers import fill_network
from util.checkpoint import fingerprint
from util.config.config import REPOSITORY
from util.errors import UserError

TINY = dict(image_size=16, num_channels=32, num_res_blocks=1, channel_mult="1", attention_resolutions="")


@pytest.fixture
def trained():
    model = create_model(**TINY)
    fill_network(model, 0)
    return model


@pytest.fixture
def saved(tmp_path, trained):
    path = tmp_path / "prior.pt"
    torch.save(trained.state_dict(), path)
    return path


def test_loads_every_tensor(saved, trained):
    loaded = create_model(**TINY, model_path=str(saved))
    assert not loaded.training
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_the_old_file_format_loads_too(tmp_path, trained):
    path = tmp_path / "old.pt"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=False)
    assert torch.equal(create_model(**TINY, model_path=str(path)).out[2].weight, trained.out[2].weight)


def test_half_precision_is_widened(tmp_path, trained):
    path = tmp_path / "half.pt"
    torch.save({name: tensor.half() for name, tensor in trained.state_dict().items()}, path)
    loaded = create_model(**TINY, model_path=str(path))
    assert loaded.out[2].weight.dtype == torch.float32
    assert torch.equal(loaded.out[2].weight, trained.out[2].weight.half().float())


def test_safetensors_load_too(tmp_path, trained):
    path = tmp_path / "prior.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, path)
    assert torch.equal(create_model(**TINY, model_path=str(path)).out[2].weight, trained.out[2].weight)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read .*truncated"):
        create_model(**TINY, model_path=str(path))


def test_a_program_of_torchscript_is_refused_by_its_name(tmp_path):
    path = tmp_path / "program.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")             # torch.jit is deprecated
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UserError, match=r"is a TorchScript archive.*nothing in it was run.*state_dict\(\)"):
        create_model(**TINY, model_path=str(path))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1                 # in the middle of the weights
    path.write_bytes(content)


def test_a_changed_byte_is_told_of_until_the_record_is_gone(saved, capsys, monkeypatch):
    record = saved.with_name("prior.pt.sha256")
    create_model(**TINY, model_path=str(saved))
    known = record.read_text()
    assert known.split()[:2] == [hashlib.sha256(saved.read_bytes()).hexdigest(), "prior.pt"]
    assert fingerprint(saved) == known[:16]
    with monkeypatch.context() as patched:          # as long as the file is the same, it is not read for that
        patched.setattr("util.checkpoint.sha256_of", None)
        create_model(**TINY, model_path=str(saved))
        assert fingerprint(saved) == known[:16]
    os.utime(saved)
    create_model(**TINY, model_path=str(saved))
    assert capsys.readouterr().err == "" and record.read_text().splitlines()[0] == known.splitlines()[0]
    flip_a_byte(saved)
    for _ in range(2):
        create_model(**TINY, model_path=str(saved))
        assert "prior.pt has other contents than at its first use" in capsys.readouterr().err
    assert fingerprint(saved) != known[:16]
    record.unlink()
    create_model(**TINY, model_path=str(saved))
    assert capsys.readouterr().err == ""


def test_a_changed_byte_in_a_published_file_is_refused(saved):
    record = saved.with_name("prior.pt.sha256")
    published = f"{hashlib.sha256(saved.read_bytes()).hexdigest()}  prior.pt\n"
    record.write_text(published)
    create_model(**TINY, model_path=str(saved))
    assert record.read_text() == published
    flip_a_byte(saved)
    with pytest.raises(UserError, match="prior.pt is damaged or another file: SHA-256 .*download it again"):
        create_model(**TINY, model_path=str(saved))


@pytest.mark.parametrize("prior", ["demo_prior", "demo_faces", "demo_faces_128"])
def test_a_shipped_prior_is_the_published_one(prior):
    path = REPOSITORY / "models" / f"{prior}.pt"
    digest, name = (REPOSITORY / "models" / f"{prior}.pt.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def test_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"ffhq_10m\.pt not found; models/README\.md"):
        create_model(**TINY, model_path=str(tmp_path / "ffhq_10m.pt"))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.95])
def test_truncated_file(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match="checkpoint .*prior.pt"):
        create_model(**TINY, model_path=str(saved))


@pytest.mark.parametrize(("content", "words"), [
    (b"not a checkpoint at all", "is no checkpoint, perhaps a web page, .*; download it again"),
    (b"<html>404</html>" * 100, "is no checkpoint, perhaps a web page, .*; download it again"),
    (b"cbuiltins\nprint\n(S'it ran'\ntR.", "is no checkpoint, .* nothing in it was run"),
    (b"\x80\x02]q\x00.", "cannot be read"),
    (bytes(8) + b"{", "cannot be read"),
])
def test_other_files(tmp_path, content, words):
    path = tmp_path / "page.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"checkpoint .*page.pt {words}"):
        create_model(**TINY, model_path=str(path))


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        create_model(**TINY, model_path=str(tmp_path))


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return exec, (self.command,)


@pytest.mark.parametrize("layout", ["torch", "inside a state dict", "plain pickle"])
def test_code_is_refused_and_not_run(tmp_path, trained, layout):
    path, witness = tmp_path / "evil.pt", tmp_path / "it_ran"
    evil = Malicious(f"open({str(witness)!r}, 'w').close()")
    if layout == "plain pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save({**trained.state_dict(), "extra": evil} if layout != "torch" else evil, path)
        assert zipfile.is_zipfile(path)
    with pytest.raises(UserError, match="nothing in it was run"):
        create_model(**TINY, model_path=str(path))
    assert not witness.exists()


def test_other_architecture_names_the_differences(saved):
    with pytest.raises(UserError, match=r"does not fit the model config: .*out\.2\.weight has shape \[3, 32, 3, 3\].*"
                                        r"makes it \[6, 32, 3, 3\]"):
        create_model(**TINY, learn_sigma=True, model_path=str(saved))
    with pytest.raises(UserError, match=r"missing input_blocks\.2.* and \d+ more"):
        create_model(**{**TINY, "num_res_blocks": 2}, model_path=str(saved))


def test_additional_tensors_are_an_error(tmp_path, trained):
    path = tmp_path / "more.pt"
    torch.save({**trained.state_dict(), "ema.decay": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"unexpected ema\.decay"):
        create_model(**TINY, model_path=str(path))


def test_something_else_than_a_state_dict(tmp_path):
    for content in ([torch.ones(2)], {"model": {}, "w": torch.ones(2)}, torch.ones(3), {}):
        path = tmp_path / "other.pt"
        torch.save(content, path)
        with pytest.raises(UserError, match="expected a state dict"):
            create_model(**TINY, model_path=str(path))


@pytest.mark.parametrize("wrap", [
    lambda state: {"module." + name: w for name, w in state.items()}, lambda state: {"epoch": 3, "state_dict": state},
    lambda state: {"state_dict": {"module." + name: w for name, w in state.items()}, "args": {"lr": 1e-4}}])
def test_weights_are_found_inside_something_else(tmp_path, trained, wrap):
    torch.save(wrap(trained.state_dict()), tmp_path / "prior.pt")
    loaded = create_model(**TINY, model_path=str(tmp_path / "prior.pt"))
    assert torch.equal(loaded.out[2].weight, trained.out[2].weight)


def test_of_several_sets_of_weights_one_is_to_be_chosen(tmp_path, trained):
    torch.save({"step": 3, "weights": trained.state_dict(), "ema": trained.state_dict()}, tmp_path / "prior.pt")
    with pytest.raises(UserError, match=r"\(step, weights, ema\).*; choose one of weights, ema and save it alone"):
        create_model(**TINY, model_path=str(tmp_path / "prior.pt"))


def test_something_beside_the_tensors_is_named(tmp_path, trained):
    path = tmp_path / "more.pt"
    torch.save({**trained.state_dict(), "epoch": 3}, path)
    with pytest.raises(UserError, match=r"holds more than tensors \(epoch\), expected a state dict"):
        create_model(**TINY, model_path=str(path))


def test_missing_and_unexpected_names_are_both_shown(tmp_path, trained):
    path = tmp_path / "other.pt"
    torch.save({"unet." + name: w for name, w in trained.state_dict().items()}, path)
    with pytest.raises(UserError, match=r"missing time_embed\.0\.weight, .* and \d+ more; "
                                        r"unexpected unet\.time_embed\.0\.weight, .* and \d+ more\. Use the model"):
        create_model(**TINY, model_path=str(path))


@pytest.mark.parametrize("change", [
    torch.Tensor.long, lambda w: w > 0, lambda w: w.to(torch.complex64), lambda w: w.to(torch.float8_e4m3fn),
    lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), torch.Tensor.to_sparse, lambda w: w.to("meta"),
    lambda w: torch.nested.nested_tensor([w, w])])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights(tmp_path, trained, change):
    state = trained.state_dict()
    path = tmp_path / "kind.pt"
    torch.save({**state, "out.2.weight": change(state["out.2.weight"])}, path)
    with pytest.raises(UserError) as caught:
        create_model(**TINY, model_path=str(path))
    assert "holds out.2.weight as something else than dense tensors of torch.float16" in str(caught.value)


def test_not_finite_weights(tmp_path, trained):
    state = trained.state_dict()
    state["out.2.bias"] = torch.full_like(state["out.2.bias"], float("nan"))
    path = tmp_path / "nan.pt"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"NaN or infinity in out\.2\.bias"):
        create_model(**TINY, model_path=str(path))
