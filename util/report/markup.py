"""HTML from Python values, escaped by construction."""

from collections.abc import Mapping
from html import escape

EMPTY_ELEMENTS = ("col", "img", "meta")


class Markup(str):
    """Text that is HTML already; every other text is escaped where it enters."""

    __slots__ = ()


def element(tag: str, attributes: Mapping[str, object] | None = None, *content: object) -> Markup:
    """An element with escaped attributes and content; an attribute that is None is left out."""
    own = "".join(f' {key}="{escape(str(value))}"' for key, value in (attributes or {}).items() if value is not None)
    return Markup(f"<{tag}{own}>" if tag in EMPTY_ELEMENTS else f"<{tag}{own}>{join(*content)}</{tag}>")


def join(*content: object) -> Markup:
    """Content one after the other: markup as it is, anything else escaped."""
    return Markup("".join(item if isinstance(item, Markup) else escape(str(item)) for item in content))
