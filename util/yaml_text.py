"""Change values in the text of a YAML file, keeping its comments and its order."""

import json
from collections.abc import Sequence

import yaml

from util.safe_yaml import ConfigLoader, dump_yaml, flow, parse_yaml

Path = tuple[str, ...]


def set_values(text: str, changes: Sequence[tuple[Path, object]]) -> str:
    """The YAML `text` (a mapping) with the values at these paths, in order; sections that are not there are made.

    Where a change cannot be made in the text itself, the whole is written anew and loses its comments.
    """
    for path, value in changes:
        wanted = parse_yaml(text) or {}
        assign(wanted, path, value)
        changed = _substitute(text, path, value)
        text = changed if _reads_as(changed, wanted) else dump_yaml(json.loads(json.dumps(wanted)))
    return text


def assign(tree: dict, path: Path, value: object) -> None:
    """Set the value at `path` of a tree of mappings; whatever else than a mapping stands on the way is replaced."""
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value


def _reads_as(text: str, wanted: dict) -> bool:
    try:
        return parse_yaml(text) == wanted
    except ValueError:
        return False


def _substitute(text: str, path: Path, value: object) -> str:
    """`text` with the value put where `path` stands, or as a new first entry of the section nearest to it."""
    node, rest = yaml.compose(text, Loader=ConfigLoader), list(path)
    while rest and isinstance(node, yaml.MappingNode):
        entries = {key.value: child for key, child in node.value}
        if rest[0] not in entries:
            break
        node = entries[rest.pop(0)]
    if node is None:
        return ""
    for key in reversed(rest[1:]):
        value = {key: value}
    start, end = node.start_mark.index, node.end_mark.index
    if not rest or not isinstance(node, yaml.MappingNode):
        old = text[start:end]
        blank = old[len(old.rstrip()):]             # the end of a block mapping is where the next key begins
        return text[:start] + flow({rest[0]: value} if rest else value) + blank + text[end:]
    entry = f"{flow(rest[0])}: {flow(value)}"
    if node.flow_style:
        return f"{text[:start]}{{{entry}{', ' * bool(node.value)}{text[start + 1:]}"
    return f"{text[:start]}{entry}\n{' ' * node.start_mark.column}{text[start:]}"
