"""Parts of the tuner by name: ours, or entry points of other packages, which are named in what they raise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar, cast

from ..errors import OptionError, PockError, PockWarning

T = TypeVar("T")
Made = TypeVar("Made", covariant=True)


class PluginError(PockError):
    """A part of another package raised an exception."""


class Maker(Protocol[Made]):
    """Makes a part. If it is from outside, what ``instead`` makes takes its place when it first fails."""

    def __call__(self, *args: Any, instead: Callable[[], Any] | None = None) -> Made:
        """Make the part, from the arguments that are common to its kind."""


def _as_it_is(_name: str, loaded: Callable[..., Any]) -> Callable[..., Any]:
    return loaded


@dataclass(frozen=True)
class Kind(Generic[T]):
    """One kind of part, such as search strategies."""

    noun: str
    option: str
    """Option that names a part."""
    group: str
    """Group of entry points."""
    own: Mapping[str, Callable[..., T]]
    """Constructors of our parts, by name."""
    passed: tuple[type[PockError], ...] = ()
    """Errors that a part may raise: they pass as they are."""
    adapted: Callable[[str, Any], Callable[..., T]] = _as_it_is
    """Returns what makes a part from an entry point's name and value."""

    def maker(self, name: str) -> Maker[T]:
        """Return what makes the part of a name.

        Raises
        ------
        OptionError
            There is none of that name.
        """
        if name in self.own:
            return lambda *args, instead=None: self.own[name](*args)
        found = {each.name: each for each in entry_points(group=self.group)}
        if name not in found:
            known = ", ".join([*self.own, *found])
            raise OptionError(f"{self.option}={name!r}: there is no such {self.noun}; there are {known}")
        title = self._title(found[name])

        def make(*args: Any) -> T:
            return self.adapted(name, found[name].load())(*args)

        return lambda *args, instead=None: cast(T, Outside(title, lambda: make(*args), self.passed, instead))

    def _title(self, entry: EntryPoint) -> str:
        package = f" of the package {entry.dist.name}" if entry.dist is not None else ""
        return f"the {self.noun} '{entry.name}'{package}"


class Outside:
    """Proxy of a part from outside: what it raises becomes :class:`PluginError`, which names it.

    With ``instead`` it becomes a warning: another part takes its place, and the call that failed is made again there.
    """

    def __init__(
        self,
        title: str,
        make: Callable[[], Any],
        passed: tuple[type[PockError], ...],
        instead: Callable[[], Any] | None,
    ) -> None:
        self._title, self._instead = title, instead
        self._passed: tuple[type[Exception], ...] = (*passed, PluginError)
        self._part: Any = None
        try:
            self._part = make()
        except self._passed:
            raise
        except Exception as error:
            self._replace(error)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = self._tried(lambda: getattr(self._part, name))
        return (lambda *args: self._called(lambda: getattr(self._part, name)(*args))) if callable(found) else found

    def _called(self, call: Callable[[], Any]) -> Any:
        found = self._tried(call)
        return self._each(found, call) if isinstance(found, Iterator) else found

    def _each(self, found: Iterator[Any], call: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        try:
            yield from found
        except self._passed:
            raise
        except Exception as error:
            self._replace(error)
            yield from call()

    def _tried(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._passed:
            raise
        except Exception as error:
            self._replace(error)
            return call()

    def _replace(self, error: Exception) -> None:
        message = f"{self._title} failed: {type(error).__name__}: {error}"
        if self._instead is None:
            raise PluginError(message) from error
        warnings.warn(f"{message}. Ours takes its place", PockWarning, stacklevel=2)
        self._part, self._instead = self._instead(), None
        self._passed = (Exception,)  # what ours raises is ours
