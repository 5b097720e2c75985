"""Name -> class, with the class signature as the schema of its YAML parameters."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import ge, gt, le, lt
from typing import Annotated

from util.errors import UserError, did_you_mean, printable

LARGEST_INTEGER, LARGEST_NUMBER = 2 ** 31 - 1, 1e150     # of a parameter; a float holds the square of the second
REQUIRED = inspect.Parameter.empty                  # stands for the default of a parameter that has none


@dataclass(frozen=True)
class Bounds:
    """The range of a number, as an annotation of a parameter: `Annotated[float, Bounds(above=0)]`.

    Attributes:
        least, most: the smallest and the largest value allowed.
        above, below: values that are just not allowed.
        remedy: what somebody wants who gives another number, for messages.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    remedy: str = ""

    def __contains__(self, value: object) -> bool:
        """Whether a number lies within the range."""
        limits = ((self.least, ge), (self.most, le), (self.above, gt), (self.below, lt))
        return all(limit is None or holds(value, limit) for limit, holds in limits)

    def __str__(self) -> str:
        """Words for the range: "0 or more", "more than 0 and at most 1"."""
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        words = {"{:g} or more": self.least, "more than {:g}": self.above, "at most {:g}": self.most,
                 "less than {:g}": self.below}
        return " and ".join(form.format(bound) for form, bound in words.items() if bound is not None)


Positive = Annotated[float, Bounds(above=0)]
NonNegative = Annotated[float, Bounds(least=0)]
Fraction = Annotated[float, Bounds(least=0, most=1)]
Natural = Annotated[int, Bounds(least=0)]
Count = Annotated[int, Bounds(least=1)]
Repeats = Annotated[int, Bounds(least=1, most=10_000)]


class Registry:
    """The named implementations of one kind of thing ("operator", "noise", "conditioning method", ...).

    Args:
        base: the class that all of them are subclasses of; None for functions, or any.
    """

    def __init__(self, kind: str, base: type | None = None):
        self.kind, self.base = kind, base
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator: make the class available under `name`. A class of the same module and name replaces itself,
        as when a cell of a notebook runs again.

        Raises:
            UserError: another has the name, or the class is none of this kind.
        """
        def decorate(cls: type) -> type:
            known = self._classes.get(name, cls)
            if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UserError(f"{self.kind} '{name}' is there already, {known.__qualname__} in {known.__module__}; "
                                "choose another name")
            if self.base and not (inspect.isclass(cls) and issubclass(cls, self.base)):
                raise UserError(f"{self.kind} '{name}': {cls.__qualname__} is no subclass of {self.base.__name__}")
            self._classes[name] = cls
            cls.name = name
            if "__init__" in vars(cls):             # an inherited one is checked already
                cls.__init__ = _checked(cls.__init__, self.kind)
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

    def parts(self, choice: str | dict) -> tuple[str, dict]:
        """Name and parameters of what is chosen by its name, or by a mapping that holds `name` and parameters."""
        params = {"name": choice} if isinstance(choice, str) else dict(choice)
        if "name" not in params:
            raise UserError(f"{self.kind} {choice!r:.60} has no name; expected {{name: ...}}, one of {', '.join(self)}")
        return params.pop("name"), params

    def make(self, choice: str | dict):
        """Instantiate what is chosen, see `parts` and `build`."""
        name, params = self.parts(choice)
        return self.build(name, **params)

    def build(self, name: str, /, **params):
        """Instantiate the class registered as `name` after checking `params` against its signature; UserError where it
        lacks a method."""
        self.check(name, **params)
        try:
            return self[name](**params)
        except TypeError as error:
            if "abstract" not in str(error):
                raise
            raise UserError(f"{self.kind} '{name}': {error}; write it") from None


@dataclass(frozen=True)
class OneOf:
    """A thing of a registry, chosen by a parameter, as its annotation: `Annotated[str | dict, OneOf(REGISTRY)]`.

    The value is a name, or a mapping of `name` and the thing's own parameters.
    """

    registry: Registry

    def __contains__(self, choice: str | dict) -> bool:
        """True; UserError, which says more than False would, where there is no such thing or its parameters are wrong.
        """
        name, params = self.registry.parts(choice)
        self.registry.check(name, **params)
        return True

    def __str__(self) -> str:
        """Words for the choice."""
        return f"one of {', '.join(self.registry)}"


def _checked(init: Callable, kind: str) -> Callable:
    """`init` of a registered class, which checks its arguments before it runs, whoever calls it."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self, *args, **kwargs) -> None:
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:                           # an unknown or a missing one: named below, or by Python
            given = {"self": self, **kwargs}
        params = dict(list(given.items())[1:])
        check_arguments(init, params, where=f"{kind} '{self.name}'")
        hints = annotations(init)
        init(self, **{key: as_float(value, hints.get(key)) for key, value in params.items()})

    return __init__


def defaults(function: Callable) -> dict[str, object]:
    """Name -> default of every parameter; `REQUIRED` for those that must be given."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"}


def annotations(function: Callable) -> dict[str, object]:
    """Name -> annotation of the parameters of a function or a class, bounds included."""
    return typing.get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)


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
            place = place_within(function, key)
            raise UserError(f"{where}: unknown key '{key}'; {f'it stands in {place}' if place else choices}")
    for key, default in accepted.items():
        if default is REQUIRED and key not in params:
            raise UserError(f"{where}: '{key}' is missing; it takes {', '.join(accepted)}")
    hints = annotations(function)
    for key, value in params.items():
        if key in hints and not fits(value, hints[key]):
            raise UserError(f"{where}: {key} is {printable(f'{value!r:.60}')}, expected {describe(hints[key])}"
                            f"{_remedy(hints[key], value)}")


def _remedy(hint: object, value: object) -> str:
    """What a message adds about numbers that are too large, and what `Bounds` says to do."""
    remedies = [bounds.remedy for kind in (hint, *typing.get_args(hint)) for bounds in getattr(kind, "__metadata__", ())
                if isinstance(bounds, Bounds) and bounds.remedy]
    if isinstance(value, (int, float)) and LARGEST_INTEGER < abs(value) < math.inf:
        remedies.append(f"at most {LARGEST_INTEGER} where it is whole, {LARGEST_NUMBER:g} otherwise")
    return "".join(f"; {remedy}" for remedy in remedies)


def place_within(function: Callable, key: str) -> str | None:
    """Where `key` stands among the parameters of what the function's own parameters choose, such as
    "likelihood: {name: point, power: ...}"; None if it does not."""
    for parameter, hint in annotations(function).items():
        for chosen in typing.get_args(hint):
            for name in chosen.registry if isinstance(chosen, OneOf) else ():
                cls = chosen.registry[name]
                inner = f"{key}: ..." if key in defaults(cls) else place_within(cls, key)
                if inner:
                    return f"{parameter}: {{name: {name}, {inner}}}"
    return None


def as_float(value: object, hint: object) -> object:
    """A number, numpy's too, as the float that `hint` asks for: the squares of large integers are no int64, which
    tensors want."""
    kinds = {typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
             for kind in (hint, *typing.get_args(hint))}
    number = isinstance(value, Real) and not isinstance(value, bool)
    return float(value) if number and float in kinds and int not in kinds else value


def fits(value: object, hint: object) -> bool:
    """Whether a YAML value may stand where `hint` is annotated (an int may stand for a float, a list for a tuple)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return fits(value, arguments[0]) and all(value in bounds for bounds in arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in arguments)
    if origin in (list, tuple, Sequence):
        fixed = origin is tuple and Ellipsis not in arguments
        items = arguments if fixed else arguments[:1] * len(value) if isinstance(value, (list, tuple)) else ()
        return isinstance(value, (list, tuple)) and len(value) == len(items) and all(map(fits, value, items))
    if hint in (int, float):
        kind, most = (Integral, LARGEST_INTEGER) if hint is int else (Real, LARGEST_NUMBER)
        return isinstance(value, kind) and not isinstance(value, bool) and abs(_plain(value)) <= most
    kind = origin or hint
    return not isinstance(kind, type) or isinstance(value, kind)


def _plain(number: Real) -> int | float:
    """A number of Python in place of one of numpy, whose small types overflow in comparisons."""
    return number if isinstance(number, int) else float(number)


def describe(hint: object) -> str:
    """Words for an annotation: "an integer, 1 or more", "one of 'a', 'b'", "a list of 2, each an integer", "a string or
    null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([describe(arguments[0]), *map(str, arguments[1:])])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in arguments)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in arguments)
    if origin in (list, tuple, Sequence):
        fixed = origin is tuple and Ellipsis not in arguments
        return f"a list{f' of {len(arguments)}, each' if fixed else ', each entry'} {describe(arguments[0])}"
    names = {type(None): "null", float: "a finite number", int: "an integer", bool: "true or false",
             str: "a string", dict: "a mapping", Mapping: "a mapping"}
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))
