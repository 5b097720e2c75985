"""Name -> class, with the class signature as the schema of its YAML parameters."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Sequence

from util.errors import UserError, did_you_mean

LARGEST_INTEGER, LARGEST_NUMBER = 2 ** 31 - 1, 1e150     # of a parameter; a float holds the square of the second
LARGEST_FACTOR = 10 ** 6                            # the squares of larger whole numbers may not be an int64
REQUIRED = inspect.Parameter.empty                  # stands for the default of a parameter that has none


class Registry:
    """The named implementations of one kind of thing ("operator", "noise", "conditioning method", ...)."""

    def __init__(self, kind: str):
        self.kind = kind
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: make the class available under `name`."""
        if name in self._classes:
            raise ValueError(f"{self.kind} '{name}' is registered twice")

        def decorate(cls: type) -> type:
            self._classes[name] = cls
            cls.name = name
            return cls

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __getitem__(self, name: str) -> type:
        """Return the class registered as `name`; UserError with the nearest name if there is none."""
        if not isinstance(name, str) or name not in self._classes:
            raise UserError(f"unknown {self.kind} '{name}'; {did_you_mean(name, self)}")
        return self._classes[name]

    def check(self, name: str, /, **params) -> None:
        """UserError unless there is a class `name` and `params` fit its signature."""
        check_arguments(self[name], params, where=f"{self.kind} '{name}'")

    def build(self, name: str, /, **params):
        """Instantiate the class registered as `name` after checking `params` against its signature."""
        self.check(name, **params)
        cls = self[name]
        hints = annotations(cls)
        return cls(**{key: as_float(value, hints.get(key)) for key, value in params.items()})


def defaults(function: Callable) -> dict[str, object]:
    """Name -> default of every parameter; `REQUIRED` for those that must be given."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def annotations(function: Callable) -> dict[str, object]:
    """Name -> annotation of the parameters of a function or a class."""
    return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)


def check_arguments(function: Callable, params: dict, where: str) -> None:
    """Check `params` against the signature and annotations of `function`.

    Raises:
        UserError: an unknown or missing key, or a value whose type does not fit its annotation; the message
            begins with `where` and names the key, what was found and what is accepted.
    """
    accepted = defaults(function)
    for key in params:
        if key not in accepted:
            choices = did_you_mean(key, accepted) if accepted else "it takes no parameters"
            raise UserError(f"{where}: unknown key '{key}'; {choices}")
    for key, default in accepted.items():
        if default is REQUIRED and key not in params:
            raise UserError(f"{where}: '{key}' is missing; it takes {', '.join(accepted)}")
    hints = annotations(function)
    for key, value in params.items():
        if key in hints and not fits(value, hints[key]):
            raise UserError(f"{where}: {key} is {value!r:.60}, expected {describe(hints[key])}{_most(value)}")


def _most(value: object) -> str:
    if not isinstance(value, (int, float)) or not LARGEST_INTEGER < abs(value) < math.inf:
        return ""
    return f"; at most {LARGEST_INTEGER} where it is whole, {LARGEST_NUMBER:g} otherwise"


def as_float(value: object, hint: object) -> object:
    """A large whole number as the float that `hint` asks for: squares of floats are numbers that tensors know."""
    floats = hint is float or (float in typing.get_args(hint) and int not in typing.get_args(hint))
    return float(value) if floats and type(value) is int and abs(value) > LARGEST_FACTOR else value


def fits(value: object, hint: object) -> bool:
    """Whether a YAML value may stand where `hint` is annotated (an int may stand for a float, a list for a tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (list, tuple, Sequence):
        items = [a for a in arguments if a is not Ellipsis]
        fixed = origin is tuple and Ellipsis not in arguments
        return (isinstance(value, (list, tuple))
                and (not fixed or len(value) == len(items))
                and all(fits(v, items[i if fixed else 0]) for i, v in enumerate(value)))
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER
    return not isinstance(hint, type) or isinstance(value, hint)


def describe(hint: object) -> str:
    """Words for an annotation: "an integer", "one of 'a', 'b'", "a list of 2, each an integer", "a string or null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (list, tuple, Sequence):
        fixed = origin is tuple and Ellipsis not in arguments
        return f"a list of {len(arguments)}, each {describe(arguments[0])}" if fixed else (
            f"a list, each entry {describe(arguments[0])}")
    names = {type(None): "null", float: "a finite number", int: "an integer", bool: "true or false",
             str: "a string", dict: "a mapping"}
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))
