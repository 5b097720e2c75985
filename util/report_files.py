"""Where a report lies, and how one is recognised: a page, and pictures beside it that are too many for the page."""

import re
from pathlib import Path

PAGE = "report.html"
GENERATOR = "python -m util.report"                 # as the page names what made it
MARK = f'name="generator" content="{GENERATOR}"'.encode()
MARKED = 4096                                       # bytes at the head of a page that hold the mark
PICTURE = re.compile(r"[0-9a-f]{20}\.png")


def pictures_folder(page: Path) -> Path:
    """The folder of the pictures beside a page."""
    return page.with_name(f"{page.stem}_files")


def delete_report(folder: Path) -> None:
    """Delete the report in a folder with its pictures, and no page that somebody else made."""
    page = folder / PAGE
    if page.is_symlink() or not is_report(page):
        return
    page.unlink()
    pictures = pictures_folder(page)
    if pictures.is_dir() and not pictures.is_symlink():
        for file in pictures.iterdir():
            if PICTURE.fullmatch(file.name):
                file.unlink()
        if not any(pictures.iterdir()):
            pictures.rmdir()


def is_report(page: Path) -> bool:
    """Whether there is a page of ours that can be read."""
    if not page.is_file():
        return False
    try:
        with open(page, "rb") as file:
            return MARK in file.read(MARKED)
    except OSError:
        return False
