"""Checks arguments: a value of the wrong kind gets one line that says what is wanted.

Uses the standard library alone, since devices check arguments too.
"""

from __future__ import annotations

import functools
import math
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .errors import OptionError, PockError

LARGEST = 3.4028234663852886e38
"""The largest finite float32. Larger numbers are infinite on a device."""
SMALLEST = 2.0**-126
"""The smallest normal float32. Smaller numbers may be zero on a device."""

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """The kind of value that an argument takes, in words and as a test."""

    what: str
    holds: Callable[[Any], bool]

    def or_none(self) -> Kind:
        """The same kind, or None."""
        return Kind(self.what, lambda value: value is None or self.holds(value))


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or NumPy; True and False are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether a value is a number that is finite in float32."""
    if type(value) is float:  # the usual case: other kinds of numbers take longer to tell
        return abs(value) <= LARGEST
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(float(value)) <= LARGEST


def number(what: str, least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> Kind:
    """Finite numbers from ``least`` (or only ``above`` a bound) to ``most``."""
    return Kind(what, lambda value: is_number(value) and least <= value <= most and value > above)


def whole(what: str, least: int) -> Kind:
    """Whole numbers from ``least``."""
    return Kind(what, lambda value: is_whole(value) and value >= least)


def one_of(what: str, *kinds: type) -> Kind:
    """Instances of some classes."""
    return Kind(what, lambda value: isinstance(value, kinds))


FLAG = one_of("True or False", bool)
PATH = Kind("a path", lambda value: isinstance(value, str | os.PathLike) and bool(os.fspath(value)))
RATE = number("a finite number from 0", 0)


def require(name: str, value: object, kind: Kind, error: type[PockError] = OptionError) -> None:
    """Raise ``error`` unless an argument is of its kind."""
    if not kind.holds(value):
        raise error(f"{name} is {kind.what}, not {described(value)}")


def described(value: object) -> str:
    """Describe a value of the wrong kind in a few words: its repr where that is short, else its class."""
    if isinstance(value, type):
        return f"the class {value.__name__}: call it"
    if value is None or isinstance(value, bool | numbers.Number | str | bytes):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    module = type(value).__module__.split(".")[0]
    name = type(value).__qualname__ if module == "builtins" else f"{module}.{type(value).__qualname__}"
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _plain(value: Any) -> Any:
    """Convert NumPy's numbers to Python's, which JSON can write."""
    if is_whole(value):
        return int(value)
    return float(value) if is_number(value) else value


def options(hints: Mapping[str, str] = {}, **kinds: Kind) -> Callable[[type[T]], type[T]]:  # noqa: B006 - read only
    """Make a dataclass refuse options that it does not have, and values of the wrong kind.

    ``hints`` maps names that people try to advice on what to do instead.
    """

    def decorate(cls: type[T]) -> type[T]:
        make = cls.__init__
        names = [each.name for each in fields(cls)]  # type: ignore[arg-type]

        @functools.wraps(make)
        def init(self: Any, *args: Any, **given: Any) -> None:
            unknown = [name for name in given if name not in names]
            if unknown or len(args) > len(names):
                what = f"has no option '{unknown[0]}'" if unknown else f"takes {len(names)} options, not {len(args)}"
                hint = f". {hints[unknown[0]]}" if unknown and unknown[0] in hints else ""
                raise OptionError(f"{cls.__name__} {what}; its options are {', '.join(names)}{hint}")
            given |= dict(zip(names, args, strict=False))
            for name, value in given.items():
                if name in kinds:
                    require(f"{cls.__name__}: {name}", value, kinds[name])
            make(self, **{name: _plain(value) for name, value in given.items()})

        cls.__init__ = init  # type: ignore[method-assign]
        return cls

    return decorate
