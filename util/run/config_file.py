"""config.yaml of a run: what its results were made with, and what a run that continues it must agree with."""

from pathlib import Path

from util.config.config import leaves, read_yaml
from util.config.yaml_text import dump_yaml
from util.errors import UserError
from util.files import write_atomically
from util.run.layout import CONFIG

BATCH_SIZE = "batch_size"                           # kept for the rest of the run; it may change last digits only


def write_settings(run: Path, settings: dict[str, object], batch_size: int | None) -> None:
    """Write the config.yaml of the run in a folder.

    Args:
        settings: everything that decides the results, as plain YAML values.
        batch_size: entries per batch, as --batch_size auto chose them when the run began; None if it did not.
    """
    chosen = {} if batch_size is None else {BATCH_SIZE: batch_size}
    write_atomically(run / CONFIG, dump_yaml({**settings, **chosen}).encode())


def check_settings(run: Path, settings: dict[str, object]) -> int | None:
    """Compare the config.yaml of a run with the settings that shall continue it; its batch size, see `write_settings`.

    Raises:
        UserError: they are not the same, or it cannot be told; the message lists every difference.
    """
    found = read_settings(run)
    if changes := changed_settings(found, settings):
        raise UserError(f"{run} holds results of another configuration: {', '.join(changes)}; "
                        "choose another folder with --save_dir, or replace them with --overwrite")
    size = found.get(BATCH_SIZE)
    return size if type(size) is int and size > 0 else None


def changed_settings(found: dict[str, object], settings: dict[str, object]) -> list[str]:
    """What differs between the settings that a run's config.yaml has, but for its batch size, and those of now."""
    there, now = ({".".join(key): value for key, value in leaves(tree).items()} for tree in (found, settings))
    there.pop(BATCH_SIZE, None)
    return [f"{key} ({there.get(key, 'unset')} there, {now.get(key, 'unset')} now)"
            for key in now | there if now.get(key, "unset") != there.get(key, "unset")]


def read_settings(run: Path) -> dict[str, object]:
    """What the config.yaml in the folder of a run says; UserError if there is none, or it says nothing."""
    path = (run / CONFIG).absolute()                # found nowhere else
    try:
        return read_yaml(path)
    except UserError:
        found = "is no configuration of ours" if path.exists() else "is missing, which tells how results were made"
        raise UserError(f"{run / CONFIG} {found}; choose another folder with --save_dir, or replace the results with "
                        "--overwrite") from None
