"""config.yaml of a run: what its results were made with, and what a run that continues it must agree with."""

from pathlib import Path

from util.config.config import leaves, read_yaml
from util.config.yaml_text import dump_yaml
from util.errors import UserError
from util.img_utils import write_atomically
from util.run.layout import CONFIG

BATCH_SIZE = "batch_size"                           # kept for the rest of the run; it may change last digits only


class RunConfig:
    """The configuration of the run in `folder`.

    Args:
        folder: of the run.
        settings: everything that decides the results, as plain YAML values.

    Attributes:
        batch_size: entries per batch, as --batch_size auto chose them when the run began; None if it did not.
    """

    def __init__(self, folder: Path, settings: dict[str, object]):
        self.path, self.settings = folder / CONFIG, settings
        self.batch_size: int | None = None

    def bind(self, continues: bool) -> None:
        """Write config.yaml.

        Args:
            continues: there are results here, whose configuration must be the same.

        Raises:
            UserError: it is not the same, or cannot be told; the message lists every difference.
        """
        if continues:
            self._check_same(read_settings(self.path.parent))
        self._write()

    def keep_batch_size(self, batch_size: int) -> None:
        """Note what --batch_size auto chose, for whoever continues the run."""
        self.batch_size = batch_size
        self._write()

    def _write(self) -> None:
        chosen = {} if self.batch_size is None else {BATCH_SIZE: self.batch_size}
        write_atomically(self.path, dump_yaml({**self.settings, **chosen}).encode())

    def _check_same(self, found: dict[str, object]) -> None:
        size = found.pop(BATCH_SIZE, None)
        self.batch_size = size if type(size) is int and size > 0 else None
        there, now = ({".".join(key): value for key, value in leaves(tree).items()} for tree in (found, self.settings))
        changes = [f"{key} ({there.get(key, 'unset')} there, {now.get(key, 'unset')} now)"
                   for key in now | there if now.get(key, "unset") != there.get(key, "unset")]
        if changes:
            raise UserError(f"{self.path.parent} holds results of another configuration: {', '.join(changes)}; "
                            "choose another folder with --save_dir, or replace them with --overwrite")


def read_settings(run: Path) -> dict[str, object]:
    """What the config.yaml in the folder of a run says; UserError if there is none, or it says nothing."""
    path = (run / CONFIG).absolute()                # found nowhere else
    try:
        return read_yaml(path)
    except UserError:
        found = "is no configuration of ours" if path.exists() else "is missing, which tells how results were made"
        raise UserError(f"{run / CONFIG} {found}; choose another folder with --save_dir, or replace the results with "
                        "--overwrite") from None
