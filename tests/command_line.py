"""The command line with a tiny network: its model, its arguments, and what it leaves."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

from util.config.config import REPOSITORY

MODEL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,1", "learn_sigma": True,
         "attention_resolutions": "16", "num_heads": 1, "use_scale_shift_norm": True}
TASK = {"conditioning": {"method": "dpps", "params": {"scale": 0.5}},
        "data": {"name": "skimage"},
        "measurement": {"operator": {"name": "super_resolution", "scale_factor": 4},
                        "noise": {"name": "gaussian", "sigma": 0.05}}}
FOLDER = "super_resolution/dpps"            # of this task, below the results folder


def arguments(prior: Path, *more: str) -> list[str]:
    return ["--model_config", str(prior / "model.yaml"), "--task_config", str(prior / "task.yaml"),
            "--set", "diffusion.timestep_respacing=3", *more]


def launch(prior: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(REPOSITORY / "sample_condition.py"), *arguments(prior, *more)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows(folder: str = f"results/{FOLDER}") -> list[dict[str, str]]:
    with open(f"{folder}/metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def pictures(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*.png"))}


def contents(folder: Path) -> dict[str, object]:
    """Every file of a run, but for what depends on time: seconds and memory."""
    files: dict[str, object] = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*")
                                if f.is_file()}
    table = list(csv.DictReader(io.StringIO(files["metrics.csv"].decode())))
    files["metrics.csv"] = [{key: value for key, value in row.items() if key != "seconds"} for row in table]
    summary = json.loads(files["summary.json"])
    files["summary.json"] = json.dumps({k: v for k, v in summary.items() if k not in ("seconds", "peak_memory_bytes")})
    return files
