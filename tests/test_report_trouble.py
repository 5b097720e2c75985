"""Nothing in a results folder can break the page: hostile names, odd tables and pictures, mistakes of the user."""

import base64
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers import picture
from tests.report_pages import make_run
from util.report.__main__ import main


def test_the_policy_allows_the_own_script_and_no_other(tmp_path, report):
    make_run(tmp_path)
    report()
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&amp;b", "'; alert(1)//", "new\nline",
           "\u202eevil", "-rf", "--images=9", "</style><b>", "%2e%2e", "data:text/html,x", "日本語", "{x}", "${x}")


def test_names_are_text_and_nothing_else(tmp_path, report):
    make_run(tmp_path, images=tuple(f"plain{k:02d}" for k in range(len(HOSTILE))), curves=True, samples=2)
    plain = [tag for tag, _ in report()[1].elements]
    shutil.rmtree(tmp_path / "inpainting")
    names = tuple(name.replace("/", "\u2215") for name in HOSTILE)
    make_run(tmp_path, images=names, curves=True, samples=2)
    _, page, _ = report()
    assert [tag for tag, _ in page.elements] == plain
    assert {*names} <= {*page.texts}
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_hostile_methods_settings_and_facts_are_text(tmp_path, report):
    evil = "<script>x<b>"
    path = make_run(tmp_path, task=f"{evil}t", method=f"{evil}m", curves=True, samples=2,
                    measurement={"operator": {"name": evil}, "noise": evil}, **{f"{evil}k": f"{evil}v"})
    (path / "summary.json").write_text(json.dumps({"device": f"{evil}d", evil: 1}))
    status, page, _ = report("--title", evil)
    assert status == 0
    assert len(page.all("script")) == 1
    for mark in "tmkvd":
        assert f"{evil}{mark}" in page.text


@pytest.mark.parametrize("change", [
    lambda text: text.replace("\na,", "\n../../../secret,"), lambda text: text.replace("\na,", "\n/etc/passwd,"),
    lambda text: text.replace("\na,0,", "\na,/../../secret,"), lambda text: "what,ever\n1,2\n",
    lambda text: text.replace("\na,0,", "\na,0,1,"), lambda text: "\xff\0"],
    ids=["outside", "absolute", "sample", "other columns", "a long row", "no text"])
def test_a_table_of_something_else_is_refused(tmp_path, report, change):
    picture(tmp_path / "secret.png")
    table = make_run(tmp_path) / "metrics.csv"
    table.write_text(change(table.read_text()), encoding="latin-1")
    status, page, out = report()
    assert (status, page, len(out.splitlines())) == (2, None, 1) and f"{table} is not a table of ours" in out


def test_a_run_without_a_configuration_is_refused(tmp_path, report):
    (make_run(tmp_path) / "config.yaml").unlink()
    assert report()[0] == 2


def test_damaged_runs_are_named_and_the_others_shown(tmp_path, report):
    make_run(tmp_path)
    make_run(tmp_path, method="dpps")
    (make_run(tmp_path, method="mcg") / "metrics.csv").write_text("what,ever\n1,2\n")
    (make_run(tmp_path, method="ddrm") / "config.yaml").unlink()
    status, page, out = report()
    assert status == 1 and "2 runs of 1 task" in out and {"DPS", "DPPS"} <= {*page.texts}
    assert not {"MCG", "DDRM"} & {*page.texts}
    left_out = [line for line in out.splitlines() if "left out" in line]
    assert ["ddrm" in line and "is missing" in line or "mcg" in line and "not a table of ours" in line
            for line in left_out] == [True, True], out


def test_an_empty_table_is_shown(tmp_path, report):
    (make_run(tmp_path) / "metrics.csv").write_text("")
    status, page, out = report()
    assert status == 0 and "0 images, seed 0." in page.text and "1 run of 1 task" in out


@pytest.mark.parametrize("text", ["", "step,0\n", "step,0\n1,nan\n0,inf\n", "step,0\n1,0\n0,-1\n", "step,0\n1,x\n",
                                  "step,0\n\n1\n", "a\0b", "step,0\n5,1e-300\n0,1e300\n"])
def test_odd_trajectories_are_no_obstacle(tmp_path, report, text):
    path = make_run(tmp_path, curves=True, images=("a",))
    (path / "trajectories" / "a.csv").write_text(text)
    assert report()[0] == 0


def test_missing_and_damaged_pictures_leave_a_gap(tmp_path, report):
    path = make_run(tmp_path, images=("a", "b"))
    (path / "recon" / "a.png").unlink()
    status, page, _ = report()
    assert status == 0 and page.texts.count("no picture") == 1
    (path / "recon" / "b.png").write_bytes(b"no picture at all")
    status, page, out = report()
    assert status == 1 and page.texts.count("no picture") == 2
    assert len(out.splitlines()) == 2 and "b.png" in out


def test_mistakes_end_with_status_2_and_one_line(tmp_path, report):
    status, page, out = report()
    assert (status, page) == (2, None) and "holds no run" in out and len(out.splitlines()) == 1
    make_run(tmp_path)
    for options, words in ((("--images", "0"), "whole number"), (("--imagse", "3"), "did you mean '--images'"),
                           (("--out", str(tmp_path)), "is a folder")):
        status, page, out = report(*options)
        assert status == 2 and page is None and words in out and len(out.splitlines()) == 1
    assert main([str(tmp_path / "nowhere")]) == 2
    assert main([str(tmp_path / "inpainting" / "ps" / "metrics.csv")]) == 2


@pytest.mark.skipif(os.name != "posix" or not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, report):
    make_run(tmp_path)
    assert report()[0] == 0
    before = (tmp_path / "report.html").read_bytes()
    status, _, out = report("--out", "/proc/self/report.html")
    assert status == 2 and "--out /proc/self/report.html cannot be written" in out
    table = next(tmp_path.rglob("metrics.csv"))
    content = table.read_bytes()
    status, _, out = report("--out", str(table))
    assert status == 2 and "metrics.csv: expected a file that ends in .html" in out
    assert table.read_bytes() == content and (tmp_path / "report.html").read_bytes() == before
