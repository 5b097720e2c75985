"""Where a report lies, and how one is recognised: a page, and pictures beside it that are too many for the page."""

from pathlib import Path

PAGE = "report.html"
GENERATOR = "python -m util.report"                 # as the page names what made it
MARK = f'name="generator" content="{GENERATOR}"'.encode()
MARKED = 4096                                       # bytes at the head of a page that hold the mark


def pictures_folder(page: Path) -> Path:
    """The folder of the pictures beside a page."""
    return page.with_name(f"{page.stem}_files")


def is_report(page: Path) -> bool:
    """Whether there is a page of ours that can be read."""
    if not page.is_file():
        return False
    try:
        with open(page, "rb") as file:
            return MARK in file.read(MARKED)
    except OSError:
        return False
