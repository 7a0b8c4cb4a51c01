"""Schemes: which part of each parameter is trained."""

from __future__ import annotations

import difflib
import fnmatch
import json
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..device.arguments import PATH, Kind, is_whole, require, whole
from ..device.files import replacing
from ..device.parameters import FULL, Parameter
from ..device.reading import read_json, reading
from ..errors import SchemeError

if TYPE_CHECKING:
    from relay_passes.ir.trained_part import Trained, TrainedPart

    from ..frontend import Model
    from ..frontend.structure import Structure

Rule = str | float | Sequence[int]
"""A scheme's entry: ``"frozen"``, ``"full"``, a ratio in (0, 1] of the input channels, or indices of input channels."""

REPR_WIDTH = 120
"""Columns of a scheme's ``repr``: a line of a terminal or a log."""
RULES = Kind(
    """a mapping of patterns over parameter names to what is trained, such as Scheme({"*.bias": "full"})""",
    lambda rules: isinstance(rules, Mapping) and all(isinstance(pattern, str) for pattern in rules),
)


@dataclass(frozen=True, init=False)
class Scheme:
    """A mapping of parameter names to training rules, as plain data.

    ``Scheme({"*": "frozen", "*.bias": "full", "blocks.1[0-7].*.weight": 0.5})`` maps patterns (globs) over PyTorch's
    parameter names to rules. The last matching pattern wins; a parameter without a match is frozen.

    A ratio r trains ``ceil(r * channels)`` input channels of a convolution or linear weight (groups of a depthwise
    one): those with the largest L1 norm. Of an embedding it trains the first rows, since tokenizers number frequent
    tokens first. A list of integers trains just those channels or rows.
    """

    rules: dict[str, Rule]

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        require("a scheme", rules, RULES, SchemeError)
        object.__setattr__(self, "rules", {pattern: _checked(pattern, rule) for pattern, rule in rules.items()})

    def __repr__(self) -> str:
        return textwrap.shorten(f"Scheme({self.rules})", REPR_WIDTH, placeholder=" …})")

    # ---- named schemes -----------------------------------------------------------------------------------------------

    @classmethod
    def full(cls) -> Scheme:
        """Train all parameters."""
        return cls({"*": "full"})

    @classmethod
    def head_only(cls, model: Any) -> Scheme:
        """Train the last layer: its weight and its bias."""
        structure, _ = _read(model)
        return cls({"*": "frozen"} | dict.fromkeys(structure.head_parameters(), "full"))

    @classmethod
    def bias_only(cls, model: Any, *, last: int | None = None) -> Scheme:
        """Train the head and the ``last`` biases in front of it, normalisation included; all biases by default."""
        structure, _ = _read(model)
        biases = structure.of_role("bias")
        chosen = biases if last is None else biases[len(biases) - _count("last", last, len(biases), "biases") :]
        return cls({"*": "frozen"} | dict.fromkeys([*chosen, *structure.head_parameters()], "full"))

    @classmethod
    def last_layers(cls, model: Any, count: int) -> Scheme:
        """Train the last ``count`` layers: weights, biases, and the normalisation between them."""
        structure, _ = _read(model)
        layers = sorted(structure.layers, key=lambda layer: layer.position)
        if _count("count", count, len(layers), "layers") == 0:
            return cls({"*": "frozen"})
        chosen = layers[len(layers) - count :]
        names = [layer.weight for layer in chosen] + structure.parameters_from(chosen[0].position)
        return cls({"*": "frozen"} | dict.fromkeys(names, "full"))

    @classmethod
    def from_requires_grad(cls, model: Any) -> Scheme:
        """Train the parameters with ``requires_grad``, of a ``torch.nn.Module`` or of an ExportedProgram's module."""
        if hasattr(model, "named_parameters") and not hasattr(model, "graph_signature"):
            wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        else:
            wanted = _read(model)[1].requires_grad
        return cls({"*": "frozen"} | {name: "full" for name, trained in wanted.items() if trained})

    @classmethod
    def pockengine(cls, model: Any) -> Scheme:
        """Build the published scheme of PockEngine (MICRO 2023, section 4.1), matched by the structure of the network.

        See :mod:`pock_tvm.schemes.published`.
        """
        from .published import published_rules

        structure, _ = _read(model)
        return cls({"*": "frozen"} | published_rules(structure) | dict.fromkeys(structure.head_parameters(), "full"))

    # ---- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scheme:
        """Read a scheme from a JSON file: an object of patterns."""
        require("the path of a scheme", path, PATH, SchemeError)
        with reading(SchemeError, f"'{path}' cannot be read as a scheme: {{}}"):
            rules = read_json(path)
        if not isinstance(rules, dict):
            raise SchemeError(
                f"'{path}' is not a scheme: a scheme file is one JSON object of patterns, such as "
                f'{{"*.bias": "full"}}'
            )
        return cls(rules)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scheme as a JSON file."""
        with replacing(path) as file:
            rules = ",\n".join(f"  {json.dumps(pattern)}: {json.dumps(rule)}" for pattern, rule in self.rules.items())
            file.write(f"{{\n{rules}\n}}\n".encode())

    # ---- resolution --------------------------------------------------------------------------------------------------

    def resolve(self, model: Any) -> dict[str, TrainedPart | None]:
        """Resolve the scheme for a model: the trained part of each trained parameter, None for a whole parameter.

        Axes are those of PyTorch's layout.

        Raises
        ------
        SchemeError
            A pattern matches no parameter, or gives a ratio or channels for a parameter without input channels.
        """
        trained, faults = self.resolved(model)
        if faults:
            raise faults[0]
        return trained

    def resolved(self, model: Any) -> tuple[dict[str, TrainedPart | None], list[SchemeError]]:
        """Resolve the scheme as :meth:`resolve`, but return all errors beside the entries that fit the model."""
        structure, model = _read(model)
        faults = self._unmatched(model)
        trained: dict[str, TrainedPart | None] = {}
        tied_names = {owner: alias for alias, owner in model.aliases.items()}
        for name in model.trainable:
            rule = self._rule_of(name, tied_names.get(name))
            if rule == "full":
                trained[name] = None
            elif rule != "frozen":
                try:
                    trained[name] = _trained_part(name, rule, model, structure)
                except SchemeError as error:
                    faults.append(error)
        return trained, faults

    def _rule_of(self, name: str, alias: str | None) -> Rule:
        """Return the last rule that matches a parameter, by its name or by the name of a tied parameter."""
        names = [name] if alias is None else [name, alias]
        matching = [rule for pattern, rule in self.rules.items() if any(_matches(name, pattern) for name in names)]
        return matching[-1] if matching else "frozen"

    def _unmatched(self, model: Model) -> list[SchemeError]:
        """List an error for each pattern that matches no parameter."""
        names = [*model.trainable, *model.aliases]
        faults = []
        for pattern in self.rules:
            if not any(_matches(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
                hint = f"; the nearest are {', '.join(near)}" if near else ""
                hint = hint if names else ", which has none: are its weights inputs, or constants?"
                faults.append(SchemeError(f"'{pattern}' names no parameter of the model{hint}"))
        return faults


def with_trained(parameters: Mapping[str, Parameter], trained: Trained) -> dict[str, Parameter]:
    """Fill a resolved scheme into parameter records: what is trained of each."""
    return {**parameters} | {
        name: replace(
            parameters[name], trained=FULL if part is None else {"axis": part.axis, "indices": list(part.indices)}
        )
        for name, part in trained.items()
    }


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _checked(pattern: str, rule: Any) -> Rule:
    """Check and normalise a rule; an error names its pattern."""
    if rule in ("frozen", "full") and isinstance(rule, str):
        return rule
    if isinstance(rule, bool) or not isinstance(rule, int | float | list | tuple | np.ndarray):
        raise SchemeError(
            f'\'{pattern}\': {rule!r} is neither "frozen", "full", a ratio in (0, 1] nor a list of channels'
        )
    if isinstance(rule, int | float):
        if not 0 < rule <= 1:
            raise SchemeError(f"'{pattern}': the channel ratio {rule} is outside (0, 1]")
        return float(rule)
    if not len(rule) or not all(is_whole(channel) and channel >= 0 for channel in rule) or len(set(rule)) != len(rule):
        raise SchemeError(f"'{pattern}': channels are given as a list of different indices from 0, not {list(rule)}")
    return sorted(int(channel) for channel in rule)


def _trained_part(name: str, rule: Rule, model: Model, structure: Structure) -> TrainedPart | None:
    from relay_passes.ir.trained_part import TrainedPart

    channels = structure.channels.get(name)
    if channels is None:
        role = structure.roles.get(name, "")
        what = f"it is a {role}, and only" if role in ("bias", "scale") else "only"
        raise SchemeError(
            f"'{name}' cannot be trained in part: {what} the weight of a convolution or linear layer has input "
            "channels (with groups, neither that of a transposed convolution nor of one of volumes), and only an "
            'embedding that is read nowhere else has rows that are. Give it "full" or "frozen"'
        )
    if isinstance(rule, float):
        count = channels.count_at(rule)
        if count == channels.count:
            return None
        if structure.roles[name] == "embedding":
            return TrainedPart(channels.axis, tuple(range(count)))
        norms = channels.norms(model.weights[name])
        chosen = sorted(np.argsort(-norms, kind="stable")[:count].tolist())
    else:
        chosen = list(rule)
        if chosen[-1] >= channels.count:
            many, one = ("rows", "row") if structure.roles[name] == "embedding" else ("input channels", "channel")
            raise SchemeError(f"'{name}' has {channels.count} {many}; there is no {one} {chosen[-1]}")
        if len(chosen) == channels.count:
            return None
    return TrainedPart(channels.axis, channels.indices(chosen))


def _read(model: Any) -> tuple[Structure, Model]:
    from ..frontend import load_model
    from ..frontend.structure import structure_of

    loaded = load_model(model, any_shape=True)
    return structure_of(loaded), loaded


def _count(name: str, value: int, most: int, what: str) -> int:
    require(name, value, whole(f"a number of {what}", 0), SchemeError)
    if value > most:
        raise SchemeError(f"there are {most} {what} in this network (the head's apart), not {value}")
    return int(value)
