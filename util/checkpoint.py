"""Checkpoints: loaded strictly, without executing anything, or not at all; changed ones are told of."""

import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from util.errors import StorageError, UserError, first
from util.files import write_atomically
from util.logger import logger

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)     # of weights
WHERE_TO_GET = "models/README.md says where each checkpoint comes from"


def read_checkpoint(path: Path, mend: str = f"download it again ({WHERE_TO_GET})") -> object:
    """Read a file written by `torch.save`, tensors and plain containers only, or by `safetensors`.

    Args:
        mend: what to do about a damaged one, for messages.

    Raises:
        UserError: the file is missing, is no checkpoint, is truncated, or holds code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} {'is a folder, expected a file' if path.is_dir() else 'not found'}; "
                        f"{WHERE_TO_GET}")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if head[8:] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        if head[:2] != b"PK" and head[:1] != b"\x80":
            raise pickle.UnpicklingError("it begins like no checkpoint")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # on foreign pickle protocols: either the file loads or it does not
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:      # torch raises a dozen types for damaged archives; none of them means success
        raise UserError(f"checkpoint {path} {_problem(error, mend)}") from None


def _problem(error: Exception, mend: str) -> str:
    """What is wrong with a checkpoint whose loading raised `error`, and what to do."""
    text = str(error)
    if "TorchScript" in text:
        return ("is a TorchScript archive, which is a program, and nothing in it was run; where you trust it, save its "
                "weights: torch.save(torch.jit.load(...).state_dict(), ...)")
    if not isinstance(error, pickle.UnpicklingError):
        reason = text.splitlines()[0][:100] if text else type(error).__name__
        return f"cannot be read ({reason}); it may be truncated: {mend}"
    if any(sign in text for sign in ("WeightsUnpickler", "Unsupported", "weights_only")):
        return ("was refused and nothing in it was run: it holds more than tensors and plain containers; use a file "
                f"that has only a state dict ({WHERE_TO_GET})")
    return f"is no checkpoint, perhaps a web page, or a damaged one, and nothing in it was run; {mend}"


def fingerprint(*paths: Path) -> str:
    """Sixteen digits that change with the content of a file, or of several; OSError if one cannot be read."""
    digests = [known if _stamp(path) in stamps else sha256_of(path)
               for path, (known, stamps) in zip(paths, map(_recorded, paths), strict=True)]
    return (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())[:16]


def verify(path: Path) -> None:
    """Compare a file of weights with the SHA-256 in `<file>.sha256`; where there is none, note it there.

    A record of ours has size, time and inode of the file in its second line: while these are the same, nothing is
    read. Where a record has the digest alone, as `sha256sum` writes it, it belongs to a published file.

    Raises:
        UserError: a published file is damaged. Of others that have changed a warning tells.
    """
    known, stamps = _recorded(path)
    stamp, record = _stamp(path), record_of(path)
    if stamp in stamps:
        return
    digest = sha256_of(path)
    found = f"SHA-256 {digest[:16]}..., {record.name} says {known[:16]}..."
    if known and known != digest and not stamps:
        raise UserError(f"checkpoint {path} is damaged or another file: {found}; download it again ({WHERE_TO_GET})")
    if known and known != digest:
        logger.warning(f"checkpoint {path} has other contents than at its first use ({found}); if you have "
                             f"changed it yourself, delete {record}, otherwise download it again")
    elif stamps or not known:
        with suppress(StorageError):                # the folder may be read-only
            write_atomically(record, f"{digest}  {path.name}\n# {stamp}\n".encode())


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, 64 digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2 ** 20):
            digest.update(block)
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def record_of(path: Path) -> Path:
    """Where the SHA-256 of a file stands."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> tuple[str, list[str]]:
    """The SHA-256 in the record of a file, and the stamp for which it was found; both empty without a record."""
    try:
        lines = record_of(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "", []
    return "".join(lines[:1]).partition(" ")[0], [line.removeprefix("# ") for line in lines[1:]]


def load_state_dict(model: nn.Module, path: Path, unused: Mapping[str, tuple[int, ...]] | None = None,
                    select: Callable[[dict], object] | None = None) -> None:
    """Load the state dict in `path` into `model`, every name and shape matching.

    Half-precision tensors are widened to the model's precision. Where the model is a part of what the file describes,
    `unused` gives names and shapes of the rest, which are checked like the others; `select` takes the state dict out of
    the dict in the file, where that holds more.

    Raises:
        UserError: as `read_checkpoint`; or it holds no state dict, names or shapes differ (the first few are listed), a
            tensor is not dense, not of DTYPES or has no values, or one holds NaN or infinity. The model is then left
            as it was.
    """
    found = read_state_dict(path, select)
    verify(path)
    own = model.state_dict()
    wanted = {**{name: tensor.shape for name, tensor in own.items()}, **(unused or {})}
    if others := [name for name in wanted if name in found and not is_weights(found[name])]:
        raise UserError(f"checkpoint {path} holds {first(others, 3)} as something else than dense tensors of "
                        f"{', '.join(map(str, DTYPES))}; save its weights so, or download it again ({WHERE_TO_GET})")
    if problems := _differences(found, wanted):
        raise UserError(f"checkpoint {path} does not fit the model config: {'; '.join(problems)}. "
                        f"Use the model config that belongs to this file ({WHERE_TO_GET})")
    damaged = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise UserError(f"checkpoint {path} holds NaN or infinity in {damaged[0]} and {len(damaged) - 1} more; "
                        f"download it again ({WHERE_TO_GET})")
    model.load_state_dict({name: found[name] for name in own}, strict=True)


def read_state_dict(path: Path, select: Callable[[dict], object] | None = None) -> dict[str, Tensor]:
    """The state dict in `path`, also where it is the only one inside something else, without a prefix "module."."""
    found = read_checkpoint(path)
    expected = "expected a state dict (name -> tensor)"
    if not isinstance(found, dict) or not found:
        raise UserError(f"checkpoint {path} holds a {type(found).__name__}, {expected}")
    found = select(found) if select else found
    if others := [key for key, value in found.items() if not isinstance(value, Tensor)]:
        inner = [key for key in others if _is_state_dict(found[key])]
        if len(inner) != 1:
            several = f"; choose one of {first(inner, 6)} and save it alone, by torch.save" if inner else ""
            raise UserError(f"checkpoint {path} holds more than tensors ({first(others, 6)}), {expected}{several}")
        found = found[inner[0]]
    prefix = "module." if all(str(name).startswith("module.") for name in found) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in found.items()}


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def is_weights(tensor: Tensor) -> bool:
    """Whether a tensor is dense, has values, and is of one of DTYPES."""
    return tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_meta) and tensor.dtype in DTYPES


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unexpected, and of another shape: a text for each that there is."""
    shapes = [f"{name} has shape {list(found[name].shape)}, the model config makes it {list(wanted[name])}"
              for name in wanted if name in found and found[name].shape != wanted[name]]
    kinds = {"missing ": [name for name in wanted if name not in found],
             "unexpected ": [name for name in found if name not in wanted], "": shapes}
    return [f"{kind}{first(items, 3)}" for kind, items in kinds.items() if items]
