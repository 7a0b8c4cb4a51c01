"""Makes torchvision and timm importable, which lie apart from the environment.

transformers imports torchvision where it finds it, and torchvision fails to import beside a build of PyTorch that its own
library does not load with. So ``make .zoo`` installs the two into a folder that only the zoo puts on the path.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[2] / ".zoo"


def make_importable() -> None:
    """Put the folder on the path, and define the two operators that torchvision registers things for on import."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    if not hasattr(torch.ops.torchvision, "nms"):  # no row calls them
        for name in ("nms", "qnms"):
            _LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
