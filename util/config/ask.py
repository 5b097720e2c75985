"""Questions about configurations to a process that knows what they name: nothing in `util` does."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from util.config.config import REPOSITORY
from util.errors import UserError

CHECK = (sys.executable, "-m", "guided_diffusion.restoration.check")


def ask(questions: Sequence[dict[str, dict]]) -> list[dict[str, object]]:
    """The answers of the program CHECK, asked once, as it takes seconds to start; UserError if it fails."""
    process = subprocess.run(CHECK, input=json.dumps(questions), capture_output=True, text=True, encoding="utf-8",
                             env=environment())
    if process.returncode:
        last = (process.stderr.splitlines() or [f"exit status {process.returncode}"])[-1]
        raise UserError(f"{' '.join(CHECK)}: {last.removeprefix('error: ')}")
    return json.loads(process.stdout)


def environment() -> dict[str, str]:
    """That of this process, in which programs of this repository are found wherever they are started."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}
