"""The schemes that PockEngine published, for any network of the same structure (MICRO 2023, section 4.1).

=================== ======================================================= ===========================================
network             biases                                                  weights
=================== ======================================================= ===========================================
MCUNet              last 7 blocks (of 18)                                   first 1x1 of the first 4 of these blocks,
                                                                            at 100, 100, 50 and 100 % of the channels
MobileNetV2         last 7 blocks (of 19)                                   first 1x1 of these blocks
ResNet-50           last 8 blocks (of 16)                                   first 1x1 of these blocks
BERT                last 6 blocks (of 12)                                   attention and first feed-forward of the last
                                                                            4 blocks
DistilBERT          last 3 blocks (of 6)                                    the same of the last 2
Llama               last 5 blocks (of 32)                                   the same of the last 5
=================== ======================================================= ===========================================

An inverted residual block is a depthwise convolution between two 1x1 convolutions; a network of them whose depthwise
kernels are all 3x3 counts as a MobileNetV2, one with larger kernels as an MCUNet. A residual network is cut into blocks
where two branches are added. A transformer has one block a softmax; without biases in its linear layers it counts as a
Llama, with them as a BERT. For another depth the same share of the blocks is trained; of inverted residuals the same
number, but at most half of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SchemeError
from ..frontend.structure import Layer, Structure

MCUNET_RATIOS = (1.0, 1.0, 0.5, 1.0)


@dataclass(frozen=True)
class _Block:
    """A repeated part of a network: its layers in execution order, and all its parameters."""

    layers: tuple[Layer, ...]
    parameters: tuple[str, ...]


def published_rules(structure: Structure) -> dict[str, str | float]:
    """Build the rules of the published scheme for this kind of network, without the head."""
    layers = sorted(structure.layers, key=lambda layer: layer.position)
    if structure.attentions:
        return _transformer(structure, layers)
    if any(layer.kind == "depthwise" for layer in layers):
        return _inverted_residual(structure, layers)
    if structure.joins and any(layer.kind in ("conv", "1x1") for layer in layers):
        return _residual(structure, layers)
    raise SchemeError(
        "no scheme was published for a network of this structure: it is neither a transformer nor built of "
        "residual or inverted "
        "residual blocks. Write one (Scheme({...})), or take Scheme.bias_only or Scheme.last_layers"
    )


def _inverted_residual(structure: Structure, layers: Sequence[Layer]) -> dict[str, str | float]:
    ranges = []
    for index, layer in enumerate(layers):
        if layer.kind == "depthwise":
            start = index - 1 if index and layers[index - 1].kind == "1x1" else index
            ranges.append((start, index + 2))
    blocks = _blocks(structure, layers, ranges)
    trained = blocks[-max(1, min(7, len(blocks) // 2)) :]
    expansions = [block.layers[0].weight for block in trained if block.layers[0].kind == "1x1"]
    is_mcunet = any(layer.kind == "depthwise" and max(layer.kernel) > 3 for layer in layers)
    ratios = MCUNET_RATIOS if is_mcunet else (1.0,) * len(expansions)
    return _biases(structure, trained) | dict(zip(expansions, ratios, strict=False))


def _residual(structure: Structure, layers: Sequence[Layer]) -> dict[str, str | float]:
    ranges, start = [], 1  # the first layer is the stem
    for join in structure.joins:
        end = sum(layer.position < join for layer in layers)
        if end > start:
            ranges.append((start, end))
            start = end
    blocks = _blocks(structure, layers, ranges)
    trained = blocks[-max(1, len(blocks) // 2) :]
    return _biases(structure, trained) | {block.layers[0].weight: 1.0 for block in trained}


def _transformer(structure: Structure, layers: Sequence[Layer]) -> dict[str, str | float]:
    starts = [index for index, layer in enumerate(layers) if layer.position in structure.attentions]
    width = starts[-1] - starts[-2] if len(starts) > 1 else len(layers) - 1 - starts[0]
    blocks = _blocks(structure, layers, list(zip(starts, [*starts[1:], starts[-1] + width], strict=True)))
    depth = len(blocks)
    has_biases = any(structure.roles.get(name) == "bias" for block in blocks for name in block.parameters)
    with_biases, with_weights = (depth // 2, depth // 3) if has_biases else (round(depth * 5 / 32),) * 2
    rules = _biases(structure, blocks[-max(1, with_biases) :])
    for block in blocks[-max(1, with_weights) :]:
        rules |= {layer.weight: 1.0 for layer in block.layers[:-1]}  # the last is the second feed-forward
    return rules


def _blocks(structure: Structure, layers: Sequence[Layer], ranges: Sequence[tuple[int, int]]) -> list[_Block]:
    """Build the block of each range of layers, with its parameters.

    A parameter belongs to the block whose weights' common name prefix it has. If prefixes are not distinct, it belongs
    to a block if it is read between the block's first layer and the first layer behind the block.
    """
    prefixes = [_common_prefix([layer.weight for layer in layers[start:end]]) for start, end in ranges]
    named = all(prefixes) and len(set(prefixes)) == len(prefixes)
    blocks = []
    for (start, end), prefix in zip(ranges, prefixes, strict=True):
        if named:
            members = [name for name in structure.first_use if name.startswith(prefix)]
        else:
            first = structure.first_use[layers[start].weight]
            following = structure.first_use[layers[end].weight] if end < len(layers) else math.inf
            members = [name for name, at in structure.first_use.items() if first <= at < following]
        blocks.append(_Block(tuple(layers[start:end]), tuple(members)))
    return blocks


def _common_prefix(names: Sequence[str]) -> str:
    """Return the longest common prefix of qualified names that ends with a dot."""
    common = os.path.commonprefix(list(names))
    return common[: common.rfind(".") + 1]


def _biases(structure: Structure, blocks: Sequence[_Block]) -> dict[str, str | float]:
    return {name: "full" for block in blocks for name in block.parameters if structure.roles.get(name) == "bias"}
