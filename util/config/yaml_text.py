"""YAML that runs nothing and stays small: the reader of all configuration files, and a writer of the same values, which
also changes a text and keeps its comments."""

import json
import math
import re
from collections.abc import Sequence

import yaml

MOST_VALUES = 100_000                               # in a file, aliases written out, or as many hundred characters
MOST_LEVELS = 50
UNFINISHED = -1, -1
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")      # neither 010 for 8 nor 1:20 for 80
FLOAT = re.compile(r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|"
                   r"\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$")       # YAML 1.2's 1e-3, too
OURS = {"tag:yaml.org,2002:int": INTEGER, "tag:yaml.org,2002:float": FLOAT}


class ConfigLoader(yaml.SafeLoader):
    """Plain YAML of texts, numbers, lists and mappings: no key twice, neither dates nor numbers to the base of 8 or 60
    (2024-01-01, 010 and 1:20 are texts), numbers such as 1e-3, and `!!python/tuple`, the one Python tag in DPS's files.

    A text that is huge once its aliases are written out, or is nested too deeply, is a YAMLError.
    """

    def get_single_node(self) -> yaml.Node | None:
        """The root of the text, checked before anything is constructed from it."""
        try:
            node = super().get_single_node()
            if node is not None:
                _measure(node, {})
        except RecursionError:
            raise yaml.constructor.ConstructorError(problem="nested too deeply", problem_mark=self.get_mark()) from None
        return node


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values `node` holds with its aliases written out, and in how many levels; YAMLError for too many."""
    if known.get(id(node)) == UNFINISHED:
        raise yaml.constructor.ConstructorError(problem="recursive: it holds itself", problem_mark=node.start_mark)
    if id(node) not in known:
        known[id(node)] = UNFINISHED
        children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else (
            node.value if isinstance(node, yaml.SequenceNode) else [])
        sizes = [_measure(child, known) for child in children]
        own = 1 + len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 1
        known[id(node)] = own + sum(count for count, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
        for found, most, what in zip(known[id(node)], (MOST_VALUES, MOST_LEVELS), ("values", "levels"), strict=True):
            if found > most:
                raise yaml.constructor.ConstructorError(
                    problem=f"it holds more than {most} {what}, aliases written out", problem_mark=node.start_mark)
    return known[id(node)]


def _construct_mapping(loader: ConfigLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                problem=f"key {key!r} is no text; put it in quotes", problem_mark=key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"key '{key}' stands twice in one section; keep one", problem_mark=key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _construct_unknown(loader: ConfigLoader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise yaml.constructor.ConstructorError(
        problem=f"tag {tag} is refused, nothing was run; use plain YAML (or !!python/tuple)",
        problem_mark=node.start_mark)


ConfigLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
ConfigLoader.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))
ConfigLoader.add_constructor("tag:yaml.org,2002:python/tuple",
                             lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
for _tag in (None, *(f"tag:yaml.org,2002:{name}" for name in ("binary", "omap", "pairs", "set", "timestamp"))):
    ConfigLoader.add_constructor(_tag, _construct_unknown)
ConfigLoader.yaml_implicit_resolvers = {
    first: [(tag, OURS.get(tag, form)) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class ConfigDumper(yaml.SafeDumper):
    """Puts quotes around every text that `ConfigLoader` would take for something else, and keeps it on one line."""


def _represent_text(dumper: ConfigDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


ConfigDumper.add_representer(str, _represent_text)
ConfigDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> object:
    """YAML text -> value; ValueError "line 3: what is wrong"."""
    try:
        return yaml.load(text, Loader=ConfigLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {error.problem or error.context}" if mark else error.problem) from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"position {error.position}: {error.reason}") from None
    except (ValueError, LookupError, OverflowError) as error:       # such as !!int "", or a number of 5000 digits
        raise ValueError(f"some value is not of its type ({error})") from None


def dump_yaml(value: object, width: float = 120, flow: bool = False) -> str:
    """Plain values as YAML that `parse_yaml` reads as the same, all but printable characters as escapes.

    Args:
        width: columns after which lines are broken.
        flow: as {a: 1} and [1, 2], not as lines.
    """
    for allow_unicode in (True, False):
        text = yaml.dump(value, Dumper=ConfigDumper, sort_keys=False, allow_unicode=allow_unicode, width=width,
                         default_flow_style=flow)
        if all(line.isprintable() for line in text.split("\n")):
            break
    return text


def flow(value: object) -> str:
    """A value as one line of YAML: 0.3, dpps, [1, 2], {a: 1}."""
    return dump_yaml(value, width=math.inf, flow=True).removesuffix("\n").removesuffix("\n...")


def set_values(text: str, changes: Sequence[tuple[tuple[str, ...], object]]) -> str:
    """The YAML `text` (a mapping) with the values at these paths, in order; sections that are not there are made.

    Where a change cannot be made in the text itself, the whole is written anew and loses its comments.
    """
    for path, value in changes:
        wanted = parse_yaml(text) or {}
        assign(wanted, path, value)
        changed = _substitute(text, path, value)
        text = changed if _reads_as(changed, wanted) else dump_yaml(json.loads(json.dumps(wanted)))
    return text


def assign(tree: dict, path: tuple[str, ...], value: object) -> None:
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


def _substitute(text: str, path: tuple[str, ...], value: object) -> str:
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
