"""Configuration: three YAML files, as in DPS, read safely into one frozen `Config`.

Only the structure is checked here; the parameters of a named thing (operator, noise, method, dataset, network,
sampler) are checked against its signature when it is built.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from util.command import user_path
from util.config.yaml_text import LONGEST, parse_yaml
from util.errors import UserError, did_you_mean

NEAREST = 4                                         # files that are named in place of a missing one
LIKENESS = 0.7                                      # of one that is suggested, its folder and ending included
LARGEST_FILE = 4 * LONGEST                          # bytes of a YAML file
REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = {"model": "configs/demo_model_config.yaml", "diffusion": "configs/demo_diffusion_config.yaml"}
SECTIONS = {                                        # the fixed keys; any other section holds free parameters
    (): ("conditioning", "data", "diffusion", "measurement", "model"),
    ("conditioning",): ("method", "params"),
    ("measurement",): ("mask_opt", "noise", "observed", "operator"),
}
TASK_KEYS = ("conditioning", "data", "measurement", "model_config", "diffusion_config")       # of a task file
Key = tuple[str, ...]                               # where a value stands: ("measurement", "noise", "sigma")
MOVED: dict[Key, Key] = {                           # where `Config.as_dict` has a value -> where the files may have it
    ("measurement", "operator", "mask_opt"): ("measurement", "mask_opt"),
    ("data", "observed"): ("measurement", "observed"),
}


@dataclass(frozen=True)
class Choice:
    """A registered name and the parameters to build it with."""

    name: str
    params: dict[str, object]


@dataclass(frozen=True)
class Config:
    """What a run is: the resolved content of the three files.

    `origins` has the file or the option that each value of `as_dict` comes from, `changed` the keys that --set changed,
    `prior` the file of the network, `repeats` the settings of the run whose config.yaml is its task file.
    """

    model: dict[str, object]                        # parameters of `create_model`
    diffusion: dict[str, object]                    # parameters of `create_sampler`
    conditioning: Choice
    data: Choice
    operator: Choice
    noise: Choice
    origins: dict[Key, str] = field(default_factory=dict, compare=False, repr=False)
    changed: frozenset[str] = field(default=frozenset(), compare=False)
    prior: str = field(default="", compare=False)
    repeats: dict[str, object] = field(default_factory=dict, compare=False, repr=False)

    @property
    def observed(self) -> bool:
        """Whether the data are measurements, not clean images."""
        return self.data.params.get("observed", False)

    def as_dict(self) -> dict[str, object]:
        """The configuration as plain YAML values, under the keys that `--set` takes."""
        return _plain({
            "model": self.model,
            "diffusion": self.diffusion,
            "conditioning": {"method": self.conditioning.name, "params": self.conditioning.params},
            "data": {"name": self.data.name, **self.data.params},
            "measurement": {"operator": {"name": self.operator.name, **self.operator.params},
                            "noise": {"name": self.noise.name, **self.noise.params}},
        })


def _plain(value: object) -> object:
    """Copy a tree, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def leaves(tree: dict[str, object], prefix: Key = ()) -> dict[Key, object]:
    """The values of a tree by where they stand; an empty mapping is a value."""
    found: dict[Key, object] = {}
    for name, value in tree.items():
        key = (*prefix, name)
        found |= leaves(value, key) if isinstance(value, dict) and value else {key: value}
    return found


def find_file(path: str | Path, what: str, remedy: str = "") -> Path:
    """Find `path` from the working directory or else from the repository's root.

    Raises:
        UserError: it is in neither; the message names the nearest file beside it, and the remedy.
    """
    wanted = user_path(path)
    places = (wanted, REPOSITORY / wanted)
    for place in places:
        if place.is_file():
            return place
    for place in places:
        if place.exists() or place.is_symlink():
            kind = "a folder" if place.is_dir() else "a device" if place.exists() else "a link to nothing"
            raise UserError(f"{what} {path} is {kind}, expected a file")
    suffixes = (".yaml", ".yml") if wanted.suffix in ("", ".yaml", ".yml") else (wanted.suffix,)
    siblings = {str(wanted.parent / file.name) for place in places if place.parent.is_dir()
                for file in place.parent.iterdir() if file.suffix in suffixes and file.is_file()}
    if not siblings and ".yaml" in suffixes:                                    # its folder was forgotten
        siblings = {f"configs/{file.name}" for file in (REPOSITORY / "configs").glob("*.yaml")}
    nearest = get_close_matches(str(wanted), siblings, NEAREST, 0)
    hint = did_you_mean(wanted, nearest, LIKENESS) if nearest else ""
    raise UserError("; ".join(filter(None, (f"{what} {path} not found", hint, remedy))))


def read_yaml(path: str | Path, what: str = "configuration") -> dict[str, object]:
    """Read a YAML file whose top level is a mapping, executing nothing.

    Raises:
        UserError: the file is missing or unreadable, is no YAML (the message names the line), holds a tag other than
            `!!python/tuple`, a key twice, or something else than a mapping.
    """
    file = find_file(path, what)
    try:
        if (size := file.stat().st_size) > LARGEST_FILE:
            raise UserError(f"{what} {path} has {size} bytes, expected at most {LARGEST_FILE}; is it the right file?")
        tree = parse_yaml(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is no text file, expected YAML") from None
    except ValueError as error:
        raise UserError(f"{what} {path}, {error}") from None
    return _mapping(tree, f"{path}: the top level")


def load_config(model_config: str | Path | None, diffusion_config: str | Path | None, task_config: str | Path,
                overrides: Sequence[str] = (), data: str | None = None,
                measurement: dict[str, object] | None = None) -> Config:
    """Read the three files and apply the command line's changes.

    Args:
        model_config, diffusion_config: None for the file that the task file names under these keys, or the demo's.
        task_config: the task file, or the config.yaml of a run, which has the content of all three.
        overrides: "key.path=value" texts, applied in order; values are YAML.
        data: an image folder, or "skimage", in place of the task's `data` section.
        measurement: in place of the task's `measurement` section.

    Raises:
        UserError: a file that cannot be read, or a structure that is not a configuration's.
    """
    task = read_yaml(task_config, "task configuration")
    given = {"model": model_config, "diffusion": diffusion_config}
    own, repeats = {}, {}
    if given.keys() <= task.keys():                 # config.yaml of a run, which has other keys besides
        own, repeats = {key: task[key] for key, file in given.items() if file is None}, deepcopy(task)
        task = {key: task[key] for key in TASK_KEYS if key in task}
    named = {key: task.pop(f"{key}_config") for key in given if f"{key}_config" in task}
    files = {key: task_config if key in own else _file_for(key, file, named, task_config)
             for key, file in given.items()}
    if strangers := sorted(task.keys() & files.keys()):
        raise UserError(f"{task_config}: unknown key '{strangers[0]}', which has a file of its own: "
                        f"--{strangers[0]}_config")
    for key in task:
        if key not in TASK_KEYS:
            raise UserError(f"{task_config}: unknown key '{key}'; {did_you_mean(key, TASK_KEYS)}")
    by_task = {key: f", which {task_config} names," if given[key] is None and key in named else "" for key in files}
    tree = task | own | {key: read_yaml(file, f"{key} configuration{by_task[key]}")
                         for key, file in files.items() if key not in own}
    layers = [((), str(task_config)), *(((key,), str(file)) for key, file in files.items())]    # the last one counts
    if data is not None:
        layers.append((("data",), "--data"))
        root = str(Path(data)) if data else data    # without a slash at its end
        tree["data"] = {"name": "skimage"} if data == "skimage" else {"name": "folder", "root": root}
    if measurement is not None:
        layers.append((("measurement",), "--load_measurements"))
        tree["measurement"] = measurement
    changed = [_apply(tree, override) for override in overrides]
    of_task = [".".join(key) for key in changed if key[0] not in files]
    where = f"{task_config} (with --set {', '.join(of_task)})" if of_task else str(task_config)
    layers += [(key, f"--set {'.'.join(key)}") for key in changed]
    config = _config(tree, where)

    def origin(key: Key) -> str:
        for new, old in MOVED.items():
            if key[:len(new)] == new and tree["measurement"].get(old[1]) is not None:
                key = old + key[len(new):]
        return [text for start, text in layers if key[:len(start)] == start][-1]

    return replace(config, prior=str(files["model"]), repeats=repeats, changed=frozenset(map(".".join, changed)),
                   origins={key: origin(key) for key in leaves(config.as_dict())})


def _file_for(key: str, given: str | Path | None, named: dict[str, object], task_config: str | Path) -> str | Path:
    """The file of the network or of the process: what the option gives, or else what the task file names."""
    file = named.get(key, DEMO[key])
    if not isinstance(file, str) or not file:
        raise UserError(f"{task_config}: {key}_config is {file!r:.60}, expected the name of a file, such as "
                        f"{DEMO[key]}")
    return file if given is None else given


def _apply(tree: dict, override: str) -> Key:
    """Apply "key.path=value" and return where."""
    path, equals, text = override.partition("=")
    keys = tuple(key.strip() for key in path.split("."))
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected key.path=value, such as conditioning.params.scale=0.4")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"--set {override}: {error}") from None
    for depth in range(len(keys)):
        _check_keys(keys[depth:depth + 1], keys[:depth], f"--set {path}")
    section = tree
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
        section = section[key]
        if not isinstance(section, dict):
            raise UserError(f"--set {path}: {'.'.join(keys[:depth])} is {section!r}, which has no keys below it")
    section[keys[-1]] = value
    return keys


def _config(tree: dict, file: str) -> Config:
    """Sort a tree of values into a `Config`; `file` is the task file and what was changed of it, for messages."""
    conditioning, data = _choice(tree, file, "conditioning", name="method"), _choice(tree, file, "data")
    measurement = _section(tree, file, "measurement")
    operator, noise = (_choice(tree, file, "measurement", key) for key in ("operator", "noise"))
    if measurement.get("mask_opt") is not None:
        if "mask_opt" in operator.params:
            raise UserError(f"{file}: measurement.mask_opt and measurement.operator.mask_opt are both set; keep one "
                            "(--set measurement.mask_opt=null drops the first)")
        operator.params["mask_opt"] = _section(tree, file, "measurement", "mask_opt")
    observed = measurement.get("observed", False)
    if not isinstance(observed, bool):
        raise UserError(f"{file}: measurement.observed is {observed!r}, expected true or false")
    if observed:
        data.params["observed"] = True
    params = conditioning.params.get("params")
    if params is not None:
        _mapping(params, f"{file}: conditioning.params")
    return Config(model=_mapping(tree["model"], "model"), diffusion=_mapping(tree["diffusion"], "diffusion"),
                  conditioning=Choice(conditioning.name, params or {}), data=data, operator=operator, noise=noise)


def _section(tree: dict, file: str, *path: str) -> dict:
    """The mapping at `path`; UserError if it is missing, something else, or has unknown keys."""
    for depth, key in enumerate(path, start=1):
        where = ".".join(path[:depth])
        if key not in tree:
            raise UserError(f"{file}: '{where}' is missing")
        tree = _mapping(tree[key], f"{file}: {where}")
        _check_keys(tree, path[:depth], f"{file}: {where}")
    return tree


def _choice(tree: dict, file: str, *path: str, name: str = "name") -> Choice:
    """The section at `path` as a name, which stands under `name`, and parameters."""
    section, where = _section(tree, file, *path), f"{file}: {'.'.join(path)}"
    if name not in section:
        raise UserError(f"{where}: '{name}' is missing; found {', '.join(section) or 'an empty section'}")
    if not isinstance(section[name], str):
        raise UserError(f"{where}: {name} is {section[name]!r}, expected a name")
    return Choice(section[name], {key: value for key, value in section.items() if key != name})


def _mapping(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        found = "empty" if value is None else f"{value!r:.60}"
        raise UserError(f"{where} is {found}, expected a mapping (key: value)")
    return value


def _check_keys(keys: Iterable[str], place: Key, where: str) -> None:
    """UserError for the first key that may not stand at this place."""
    for key in keys:
        if place in SECTIONS and key not in SECTIONS[place]:
            raise UserError(f"{where}: unknown key '{key}'; {did_you_mean(key, SECTIONS[place])}")
