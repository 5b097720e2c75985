"""The table of a run while it grows: a file per finished image first, metrics.csv from time to time and at the end.

    rows/<image>.csv        the image's rows, header and all; empty while the image is being restored
    metrics.csv             all rows, images in the order of the data set

Files appear whole, so nothing is torn by a run that is killed, several processes write at once, and a large table is
not rewritten for every image. rows/ is there as long as a run has not come to its end.
"""

import contextlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from util.errors import StorageError
from util.files import write_atomically
from util.run.layout import ROWS, TABLE, file_of, remove_if_empty
from util.run.table import Row, parse_rows, read_table, to_csv

SMALL_TABLE = 1000                                  # images: up to here metrics.csv is rewritten for every image,
REFRESH_SECONDS = 10                                # and a larger one as often as this


class RowStore:
    """The rows of a run, by image.

    Args:
        folder: of the run.
        images: the names in the data set, in order; rows of others come after these.
        leads: whether this process writes metrics.csv.

    Raises:
        UserError: metrics.csv is no table of ours.
    """

    def __init__(self, folder: Path, images: Sequence[str] = (), leads: bool = True):
        self.folder, self.images, self.leads = folder, images, leads
        self.written = time.monotonic()
        self.added: list[str] = []                  # images whose rows are this process's
        self.by_image: dict[str, list[Row]] = {}
        self._take(read_table(folder))
        for image in begun_images(folder):
            with contextlib.suppress(OSError, ValueError):              # only begun
                self._take(row for row in parse_rows(self._file(image).read_text(encoding="utf-8"))
                           if row.image == image)

    def _take(self, rows: Iterable[Row]) -> None:
        taken: dict[str, list[Row]] = {}
        for row in rows:
            taken.setdefault(row.image, []).append(row)
        self.by_image |= taken

    def _file(self, image: str) -> Path:
        return file_of(self.folder, ROWS, image)

    @property
    def rows(self) -> list[Row]:
        """All rows, images in order."""
        known = [image for image in self.images if image in self.by_image]
        return [row for image in dict.fromkeys([*known, *self.by_image]) for row in self.by_image[image]]

    def begin(self, image: str) -> None:
        """Note that files of the image may be there from now on."""
        file = self._file(image)
        try:
            file.parent.mkdir(exist_ok=True)
            if file.is_symlink():
                file.unlink()
            file.touch()
        except OSError as error:
            raise StorageError(f"cannot write {file}: {error.strerror or error}") from None

    def add(self, rows: Sequence[Row]) -> None:
        """Keep the rows of one image, on disk."""
        image = rows[0].image
        write_atomically(self._file(image), to_csv(rows).encode())
        self.by_image[image] = list(rows)
        self.added.append(image)
        if self.leads and (len(self.by_image) <= SMALL_TABLE or time.monotonic() - self.written >= REFRESH_SECONDS):
            self.write()

    def own_table(self) -> str:
        """The rows that this process added, for `merge`."""
        return to_csv([row for image in dict.fromkeys(self.added) for row in self.by_image[image]])

    def merge(self, text: str) -> None:
        """Take in the rows of another process."""
        self._take(parse_rows(text))

    def write(self) -> None:
        """Bring metrics.csv up to date."""
        write_atomically(self.folder / TABLE, to_csv(self.rows).encode())
        self.written = time.monotonic()

    def conclude(self) -> None:
        """Note that the run has come to its end; metrics.csv must be up to date."""
        for image in begun_images(self.folder):
            self._file(image).unlink(missing_ok=True)
        remove_if_empty(self.folder / ROWS)


def begun_images(folder: Path) -> list[str]:
    """Images of which files may be there, since a run that did not come to its end."""
    return sorted(file.stem for file in (folder / ROWS).glob("*.csv"))
