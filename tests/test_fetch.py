"""`python -m util.fetch` against a server on this machine that misbehaves in the ways that servers do."""

import contextlib
import gzip
import hashlib
import http.server
import re
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import save

from guided_diffusion.restoration.check import answer
from guided_diffusion.unet import create_model
from tests.command_line import MODEL
from util import fetch
from util.errors import UserError
from util.fetch import Weights

CONTENT = save({"weight": torch.arange(102_000).to(torch.uint8)})
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole, /redirect, /gzip, /page, /none (404), /closed (403), /busy (503, then whole), /cut (half of what is asked
    for, each time), /cut_once, /slow (half, then silence), /other (answers ranges with another file)."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        name, content = self.path.strip("/").split("/")[0], self.server.content
        times = sum(path == self.path for path, _ in self.server.asked)
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", "/whole")
            self.end_headers()
            return
        if name in ("none", "closed") or (name == "busy" and times == 1):
            self.send_error({"none": 404, "closed": 403, "busy": 503}[name])
            return
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(first[1]) if first and self.headers.get("If-Range") == self._tag(name, times) else 0
        if first and start >= len(content):
            self.send_error(416)
            return
        body = content[start:] if name != "gzip" else gzip.compress(content)
        self.send_response(206 if start else 200)
        self.send_header("ETag", self._tag(name, times))
        self.send_header("Content-Type", "text/html; charset=utf-8" if name == "page" else "application/octet-stream")
        if name == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        broken = name in ("cut", "slow") or (name in ("cut_once", "other") and times == 1)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[:len(body) // 2] if broken else body)
            if name == "slow":
                self.wfile.flush()
                time.sleep(0.4)

    @staticmethod
    def _tag(name: str, times: int) -> str:
        return f'"{times}"' if name == "other" else '"same"'

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.content = [], CONTENT
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def get(server, tmp_path):
    """get(*sources, ...) fetches the file and returns its path."""
    def get(*names: str, sha256: str | None = None, mirror: str | None = None, megabytes: int | None = None,
            fits: str | None = None) -> Path:
        sources = [{"url": f"{server.url}/{name}"} for name in names]
        weights = Weights("tiny", "a test", tmp_path / "tiny.pt", megabytes, sha256, "none", fits, sources)
        return fetch.fetch(weights, mirror, tmp_path / "files.lock")
    return get


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.parametrize("name", ["whole", "redirect", "gzip", "busy", "cut_once", "other"])
def test_a_file_takes_its_place_whole(get, server, tmp_path, name):
    assert get(name, sha256=DIGEST[:8]).read_bytes() == CONTENT
    assert names(tmp_path) == {"tiny.pt", "tiny.pt.sha256", "files.lock"}
    assert (tmp_path / "tiny.pt.sha256").read_text() == f"{DIGEST}  tiny.pt\n"
    assert yaml.safe_load((tmp_path / "files.lock").read_text()) == {"tiny": DIGEST}
    if name in ("cut_once", "other"):               # the second request continues, unless the file is another one now
        assert server.asked[1][1] == f"bytes={len(CONTENT) // 2}-"
    asked = len(server.asked)
    assert get(name).read_bytes() == CONTENT and len(server.asked) == asked


@pytest.mark.parametrize("name, message", [
    ("page", "a web page, not the file"), ("none", r"answers 404 \(Not Found\)"), ("closed", "answers 403"),
    ("cut", f"was cut {fetch.ATTEMPTS} times .*tiny.pt.part is kept, and the same command continues"),
])
def test_what_is_no_file_is_told_in_a_line_and_takes_no_place(get, tmp_path, name, message):
    with pytest.raises(UserError, match=f"(?s)tiny could not be fetched .*{message}") as caught:
        get(name)
    assert "\n" not in str(caught.value) and "--mirror" in str(caught.value)
    assert "tiny.pt" not in names(tmp_path)


def test_silence_counts_as_a_cut(get, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.1)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with pytest.raises(UserError, match="cut 2 times"):
        get("slow")
    assert get("cut_once").read_bytes() == CONTENT


def test_the_next_source_and_the_mirror_are_tried(get, server):
    assert get("none", "whole", mirror=f"{server.url}/closed/").read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/closed/tiny.pt", "/none", "/whole"]


def test_a_mirror_of_other_contents_is_told_of(get, server, capsys):
    server.content = b"random bytes"
    with pytest.raises(UserError, match="is no checkpoint, perhaps a web page"):
        get("whole")
    server.content = CONTENT
    get("none", "whole")
    assert re.search("warning: tiny: not from .*/none: the server answers 404", capsys.readouterr().err)


def test_a_mirror_that_is_no_address_is_passed_over(get):
    assert get("whole", mirror="server.of.ours").read_bytes() == CONTENT


def test_a_damaged_note_of_what_was_cut_begins_anew(get, tmp_path):
    with pytest.raises(UserError, match="the same command continues it"):
        get("cut")
    (tmp_path / "tiny.pt.part.json").write_text('{"url":')
    assert get("whole").read_bytes() == CONTENT


def test_a_later_call_continues_what_was_cut(get, server):
    with pytest.raises(UserError, match="the same command continues it"):
        get("cut")
    held, asked = len(CONTENT) - len(CONTENT) // 2 ** fetch.ATTEMPTS, len(server.asked)
    with pytest.raises(UserError):
        get("cut")
    assert server.asked[asked][1] == f"bytes={held}-"


def test_the_environment_s_mirror_and_proxy_are_respected(get, server, monkeypatch, tmp_path):
    monkeypatch.setenv(fetch.MIRROR, f"{server.url}/whole")
    assert get("none").read_bytes() == CONTENT and server.asked[0][0] == "/whole/tiny.pt"
    monkeypatch.delenv(fetch.MIRROR)
    monkeypatch.setattr(urllib.request, "_opener", None)                # made by the first request of a process
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    weights = Weights("far", "", tmp_path / "far.pt", None, None, "", None, [{"url": "http://far.invalid/whole"}])
    assert fetch.fetch(weights, lock=tmp_path / "files.lock").read_bytes() == CONTENT
    assert server.asked[-1][0] == "http://far.invalid/whole"


def test_a_terminal_sees_progress_and_the_time_left(get, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    get("whole")
    assert re.search(r"tiny.pt: 100%.*\| 102k/102k \[\d\d:\d\d<00:00, .*B/s\]", capsys.readouterr().err)


def test_another_file_than_the_known_or_pinned_one_is_deleted(get, server, tmp_path):
    with pytest.raises(UserError, match=f"SHA-256 is {DIGEST}, expected 0000"):
        get("whole", sha256="0000")
    assert names(tmp_path) <= {"tiny.pt.lock"}
    get("whole").unlink()
    server.content = b"something else"
    with pytest.raises(UserError, match=f"but {DIGEST} was pinned at the first fetch.*delete its line"):
        get("whole")
    assert "tiny.pt" not in names(tmp_path) and "tiny.pt.part" not in names(tmp_path)


def test_no_network_no_room_and_another_fetch(get, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"127.0.0.1:9 cannot be reached \(Connection refused\)"):
        weights = Weights("tiny", "", tmp_path / "tiny.pt", None, None, "", None, [{"url": "http://127.0.0.1:9/x"}])
        fetch.fetch(weights, lock=tmp_path / "files.lock")
    with FileLock(str(tmp_path / "tiny.pt.lock")), pytest.raises(UserError, match="another fetch of tiny.pt is at"):
        get("whole")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 10 ** 6))
    with pytest.raises(UserError, match="5 MB are needed, the disk has less; make room"):
        get("whole", megabytes=5)
    assert "tiny.pt" not in names(tmp_path)


def test_the_network_that_it_is_for_must_load_it(get, server, tmp_path, monkeypatch):
    """Asked in a process of its own; the second time in this one, for its time."""
    config = tmp_path / "model.yaml"
    config.write_text(yaml.safe_dump(MODEL))
    with pytest.raises(UserError, match="it does not fit .*model.yaml: checkpoint"):
        get("whole", fits=str(config))
    torch.save(create_model(**MODEL).state_dict(), tmp_path / "right.pt")
    server.content = (tmp_path / "right.pt").read_bytes()
    monkeypatch.setattr(fetch, "ask", answer)
    assert get("whole", fits=str(config)).read_bytes() == server.content


def test_hubs_are_asked_through_their_libraries(tmp_path, monkeypatch, server):
    class Hub:
        @staticmethod
        def hf_hub_download(repository, file):
            (tmp_path / "cached").write_bytes(f"{repository}/{file}".encode())
            return str(tmp_path / "cached")

    class Drive:
        @staticmethod
        def download_folder(id, skip_download, quiet):
            return [type("File", (), {"id": "1", "path": "a.pt"}), type("File", (), {"id": "2", "path": "sub/b.pt"})]

        @staticmethod
        def download(id, output, resume):
            Path(output).write_text(f"drive {id}")
            return output

    monkeypatch.setattr(fetch, "read_checkpoint", lambda part, mend: {})
    libraries = {"huggingface_hub": Hub, "gdown": Drive}
    monkeypatch.setattr(fetch, "_optional", libraries.get)
    for source, content in (({"hub": "me/net", "file": "x.pt"}, "me/net/x.pt"),
                            ({"drive": "folder", "file": "b.pt"}, "drive 2")):
        place = tmp_path / f"{source['file']}"
        fetch.fetch(Weights(place.stem, "", place, None, None, "", None, [source]), lock=tmp_path / "files.lock")
        assert place.read_text() == content
    libraries.clear()
    asked = []
    monkeypatch.setattr(fetch, "_from_url", lambda url, part: asked.append(url) or part.write_bytes(b"plain"))
    fetch.fetch(Weights("d", "", tmp_path / "d", None, None, "", None, [{"hub": "me/net", "file": "x.pt"}]),
                lock=tmp_path / "files.lock")
    assert asked == ["https://huggingface.co/me/net/resolve/main/x.pt"]
    with pytest.raises(UserError, match="pip install gdown"):
        fetch.fetch(Weights("c", "", tmp_path / "c", None, None, "", None, [{"drive": "d"}]),
                    lock=tmp_path / "files.lock")


def test_the_table_and_its_mistakes(capsys):
    assert fetch.main(["--list"]) == 0
    out = capsys.readouterr().out
    for name, weights in fetch.known_weights().items():
        assert name in out and weights.licence in out and weights.sources
        assert weights.fits is None or (fetch.REPOSITORY / weights.fits).is_file()
    assert fetch.main(["ffhq10m"]) == 2
    assert "did you mean 'ffhq_10m'" in capsys.readouterr().err
    assert fetch.command_for("models/ffhq_10m.pt") == "python -m util.fetch ffhq_10m"
    assert fetch.command_for("models/mine.pt") is None
