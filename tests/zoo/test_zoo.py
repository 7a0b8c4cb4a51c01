"""A fixed fast part of the zoo, judged in a process of its own as ``make zoo`` judges all rows."""

from __future__ import annotations

import pytest

from .judge import RIGHT, SCHEMES, Outcome
from .libraries import FOLDER
from .processes import judged
from .table import ROWS

SECONDS = 300.0
"""For a row, on a machine that does other things."""
FAST = (
    *("plain/LeNet", "plain/U-Net, nearest", "plain/YOLO", "plain/spatial transformer", "plain/T2T-ViT, fold"),
    *("plain/PointNet", "plain/TextCNN", "plain/nanoGPT", "plain/WaveNet", "plain/DLinear", "plain/DeepFM"),
    *("plain/two towers", "plain/graph attention", "plain/PPO", "plain/dueling DQN"),
    *("transformers/bert", "transformers/gpt2"),
    *("torchvision/vit_b_16 (small)", "timm/resnet18 (small)", "timm/mixer_s32_224 (small)"),
)
pytestmark = pytest.mark.xdist_group("zoo")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    if not FOLDER.is_dir():
        pytest.skip("needs torchvision and timm beside the environment: make .zoo")
    return {outcome.name: outcome for outcome in judged(list(FAST), SECONDS)}


@pytest.mark.parametrize("name", FAST)
def test_a_step_equals_pytorch(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].verdicts == dict.fromkeys(SCHEMES, RIGHT), outcomes[name].reason


def test_the_zoo_is_large() -> None:
    assert len(ROWS) >= 120
