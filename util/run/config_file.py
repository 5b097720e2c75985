"""config.yaml of a run: what its results were made with, and what a run that continues it must agree with."""

from pathlib import Path

from util.command import MOST_SAMPLES
from util.config.config import leaves
from util.config.yaml_text import dump_yaml, parse_yaml
from util.errors import UserError
from util.img_utils import write_atomically

CONFIG = "config.yaml"
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

    def read(self) -> dict[str, object]:
        """What config.yaml says, "key.path" -> value; UserError if it says nothing."""
        try:
            tree = parse_yaml(self.path.read_text(encoding="utf-8"))
            if isinstance(tree, dict):
                return _flatten(tree)
        except (OSError, ValueError):
            pass
        found = "is no configuration of ours" if self.path.exists() else "is missing, which tells how results were made"
        raise UserError(f"{self.path} {found}; choose another folder with --save_dir, or replace the results with "
                        "--overwrite")

    def read_num_samples(self) -> int:
        """How many posterior samples config.yaml tells of; UserError if it says nothing."""
        count = self.read().get("num_samples")
        return count if type(count) is int and 0 < count <= MOST_SAMPLES else 1

    def bind(self, continues: bool) -> None:
        """Write config.yaml.

        Args:
            continues: there are results here, whose configuration must be the same.

        Raises:
            UserError: it is not the same; the message lists every difference.
        """
        if continues:
            found = self.read()
            size = found.pop(BATCH_SIZE, None)
            self.batch_size = size if type(size) is int and size > 0 else None
            self._check_same(found)
        self._write()

    def keep_batch_size(self, batch_size: int) -> None:
        """Note what --batch_size auto chose, for whoever continues the run."""
        self.batch_size = batch_size
        self._write()

    def _write(self) -> None:
        chosen = {} if self.batch_size is None else {BATCH_SIZE: self.batch_size}
        write_atomically(self.path, dump_yaml({**self.settings, **chosen}).encode())

    def _check_same(self, found: dict[str, object]) -> None:
        wanted = _flatten(self.settings)
        keys = [key for key in wanted | found if wanted.get(key, "unset") != found.get(key, "unset")]
        if keys:
            changes = [f"{key} ({found.get(key, 'unset')} there, {wanted.get(key, 'unset')} now)" for key in keys]
            raise UserError(f"{self.path.parent} holds results of another configuration: {', '.join(changes)}; "
                            "choose another folder with --save_dir, or replace them with --overwrite")


def _flatten(tree: dict) -> dict[str, object]:
    return {".".join(key): value for key, value in leaves(tree).items()}
