"""How the commands end."""

import os
import subprocess
import sys

import pytest

from util.command import check_command_line, run_command
from util.config.config import REPOSITORY
from util.errors import UserError

PROGRAM = """
import os, signal
from util.command import run_command, run_program

signal.signal(signal.SIGINT, signal.SIG_IGN)

def work():
    os.kill(os.getpid(), signal.{name})
    signal.pause()

run_program(lambda: run_command(work))
"""
IMPORTS = """
import os, signal
from util.command import check_command_line

check_command_line(lambda _: True)
os.kill(os.getpid(), signal.{name})
signal.pause()
"""


def fails(error):
    def work():
        raise error
    return work


@pytest.mark.parametrize("work, status, told", [
    (lambda: 0, 0, ""), (lambda: 1, 1, ""), (fails(UserError("no such file")), 2, "error: no such file\n"),
    (fails(KeyboardInterrupt()), 130, "error: interrupted\n"),
])
def test_a_command_ends_with_a_status_and_at_most_a_line(capsys, work, status, told):
    assert run_command(work) == status
    assert capsys.readouterr() == ("", told)


def test_defects_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_command(fails(ZeroDivisionError()))


@pytest.mark.parametrize("program", [PROGRAM, IMPORTS], ids=["at work", "while it imports"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_stop_a_program_even_in_the_background(program, name):
    done = subprocess.run([sys.executable, "-c", program.format(name=name)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize("given, spins", [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"),
                                          ({"OMP_WAIT_POLICY": "ACTIVE"}, None)])
def test_threads_spin_as_long_as_the_user_says_or_not_long(monkeypatch, given, spins):
    """What libgomp reads when torch is imported, which a program does after it has checked its command line."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")                # so that both are afterwards as they were
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("util.command.end_at_once", lambda: None)
    check_command_line(lambda _: True)
    assert os.environ.get("GOMP_SPINCOUNT") == spins
