"""YAML that runs nothing and stays small: the reader of all configuration files, and a writer of the same values, which
also changes a text and keeps its comments."""

import io
import json
import math
import re
from collections.abc import Sequence

import yaml

LONGEST = 2 ** 18                                   # characters of a text
MOST_LEVELS, MOST_ALIASES = 50, 10                  # 10 aliases unfold to 36 times what is written, at most
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")      # neither 010 for 8 nor 1:20 for 80
FLOAT = re.compile(r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|"
                   r"\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$")       # YAML 1.2's 1e-3, too
OURS = {"tag:yaml.org,2002:int": INTEGER, "tag:yaml.org,2002:float": FLOAT}
TUPLE, MERGE, DATE = (f"tag:yaml.org,2002:{name}" for name in ("python/tuple", "merge", "timestamp"))


class ConfigLoader(yaml.SafeLoader):
    """Plain YAML of texts, numbers, lists and mappings: no key twice, neither dates nor numbers to the base of 8 or 60
    (2024-01-01, 010 and 1:20 are texts), numbers such as 1e-3, and `!!python/tuple`, the one Python tag in DPS's files.

    A text that is nested too deeply, or has so many aliases that it may unfold to a huge one, is a YAMLError.
    """

    levels = aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        self.levels += 1
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.levels > MOST_LEVELS or self.aliases > MOST_ALIASES:
            what = "nested too deeply" if self.levels > MOST_LEVELS else f"more than {MOST_ALIASES} aliases (*name)"
            raise _error(f"{what}; write it plainly", self.peek_event())
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def _error(problem: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=place.start_mark)


def _construct_mapping(loader: ConfigLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag != MERGE:
            key = loader.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _error(f"key {key!r} is no text; put it in quotes", key_node)
            if key in seen:
                raise _error(f"key '{key}' stands twice in one section; keep one", key_node)
            seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _construct_unknown(loader: ConfigLoader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise _error(f"tag {tag} is refused, nothing was run; use plain YAML (or !!python/tuple)", node)


ConfigLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
ConfigLoader.add_constructor("tag:yaml.org,2002:seq", lambda loader, node: loader.construct_sequence(node, deep=True))
ConfigLoader.add_constructor(TUPLE, lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
for _tag in (None, DATE, *(f"tag:yaml.org,2002:{name}" for name in ("binary", "omap", "pairs", "set"))):
    ConfigLoader.add_constructor(_tag, _construct_unknown)
ConfigLoader.yaml_implicit_resolvers = {
    first: [(tag, OURS.get(tag, form)) for tag, form in resolvers if tag != DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class ConfigDumper(yaml.SafeDumper):
    """Puts quotes around every text that `ConfigLoader` would take for something else, and keeps it on one line."""

    def ignore_aliases(self, data: object) -> bool:
        return True


ConfigDumper.add_representer(str, lambda dumper, text: dumper.represent_scalar(
    "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'))
ConfigDumper.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+.0123456789"))


def parse_yaml(text: str) -> object:
    """YAML text -> value; ValueError "line 3: what is wrong"."""
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST} characters; is it the right one?")
    try:
        return yaml.load(text, Loader=ConfigLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {error.problem or error.context}" if mark else error.problem) from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"position {error.position}: {error.reason}") from None
    except RecursionError:                          # through aliases
        raise ValueError("it is nested too deeply, or holds itself (recursive)") from None
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

    Where the changes cannot be made in the text itself, the whole is written anew and loses its comments.
    """
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes, editor.width = True, LONGEST
    tree, wanted, changed = editor.load(text) or {}, parse_yaml(text) or {}, io.StringIO()
    for path, value in changes:
        assign(tree, path, editor.load(flow(value)))
        assign(wanted, path, json.loads(json.dumps(value)))
    editor.dump(tree, changed)
    same = parse_yaml(changed.getvalue()) == wanted
    return changed.getvalue() if same else dump_yaml(json.loads(json.dumps(wanted)))


def assign(tree: dict, path: tuple[str, ...], value: object) -> None:
    """Set the value at `path` of a tree of mappings; whatever else than a mapping stands on the way is replaced."""
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value
