"""Checkpoints: loaded strictly, without executing anything, or not at all."""

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from util.errors import UserError

FINGERPRINT_BLOCKS, FINGERPRINT_BYTES = 64, 65536
WHERE_TO_GET = "models/README.md says where each checkpoint comes from"


def read_checkpoint(path: Path, mend: str = f"download it again ({WHERE_TO_GET})") -> object:
    """Read a file written by `torch.save`, tensors and plain containers only.

    Args:
        mend: what to do about a damaged one, for messages.

    Raises:
        UserError: the file is missing, is no checkpoint, is truncated, or holds code.
    """
    if path.is_dir():
        raise UserError(f"checkpoint {path} is a folder, expected a file; {WHERE_TO_GET}")
    if not path.is_file():
        raise UserError(f"checkpoint {path} not found; {WHERE_TO_GET}")
    if path.stat().st_size == 0:
        raise UserError(f"checkpoint {path} is empty; {mend}")
    if not _begins_like_one(path):
        raise UserError(f"checkpoint {path} is no checkpoint, perhaps a web page, and nothing in it was run; {mend}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # on foreign pickle protocols: either the file loads or it does not
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "WeightsUnpickler" in str(error) or "Unsupported" in str(error) or "weights_only" in str(error):
            raise UserError(f"checkpoint {path} was refused and nothing in it was run: it holds more than tensors and "
                            f"plain containers; use a file that has only a state dict ({WHERE_TO_GET})") from None
        raise UserError(f"checkpoint {path} is no readable checkpoint; {mend}") from None
    except Exception as error:      # torch raises a dozen types for damaged archives; none of them means success
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path} cannot be read ({reason}); it may be truncated: {mend}") from None


def _begins_like_one(path: Path) -> bool:
    """Whether a file begins like an archive or a pickle, or cannot be opened at all."""
    try:
        with open(path, "rb") as file:
            head = file.read(2)
    except OSError:
        return True
    return head == b"PK" or head.startswith(b"\x80")


def fingerprint(path: Path) -> str:
    """Sixteen digits that change when a network is trained further: of the size and 64 blocks, evenly spaced.

    It costs milliseconds whatever the size, and misses changes that are confined to the bytes between the blocks.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for k in range(FINGERPRINT_BLOCKS):
            file.seek(k * max(0, size - FINGERPRINT_BYTES) // (FINGERPRINT_BLOCKS - 1))
            digest.update(file.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def load_state_dict(model: nn.Module, path: Path, unused: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Load the state dict in `path` into `model`, every name and shape matching.

    Half-precision tensors are widened to the model's precision. Where the model is a part of what the file describes,
    `unused` gives names and shapes of the rest, which are checked like the others.

    Raises:
        UserError: as `read_checkpoint`; or names or shapes differ (the first few are listed), or a tensor holds NaN or
            infinity. The model is then left as it was.
    """
    found = read_checkpoint(path)
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"checkpoint {path} holds a {type(found).__name__}, expected a state dict (name -> tensor) and "
                        "nothing else")
    own = model.state_dict()
    wanted = {**{name: tensor.shape for name, tensor in own.items()}, **(unused or {})}
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [f"{name} has shape {list(found[name].shape)}, the model config makes it {list(wanted[name])}"
                 for name in wanted if name in found and found[name].shape != wanted[name]]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"checkpoint {path} does not fit the model config: {'; '.join(problems[:3])}{more}. "
                        f"Use the model config that belongs to this file ({WHERE_TO_GET})")
    damaged = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise UserError(f"checkpoint {path} holds NaN or infinity in {damaged[0]} and {len(damaged) - 1} more; "
                        f"download it again ({WHERE_TO_GET})")
    model.load_state_dict({name: found[name] for name in own}, strict=True)
