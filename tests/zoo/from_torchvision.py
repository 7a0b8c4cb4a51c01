"""Rows of ``torchvision``: classifiers, segmentation, heads of detectors, video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.numeric.draws import normal

from .libraries import make_importable
from .row import Row

CLASSES = 5


def _row(name: str, make: Callable[[Any], nn.Module], *shape: int, argument: str = "x", **options: Any) -> Row:
    def built() -> nn.Module:
        make_importable()
        import torchvision

        return make(torchvision.models)

    return Row(f"torchvision/{name}", built, {argument: normal(*shape)}, **options)


def _plain(name: str, size: int = 32) -> Row:
    """A classifier as it is."""
    return _row(name, lambda models: models.get_model(name, num_classes=CLASSES), 2, 3, size, size)


def _vgg(models: Any) -> nn.Module:
    layers = models.vgg.make_layers([8, "M", 16, "M", 24, 24, "M"], batch_norm=True)
    network = models.VGG(layers, num_classes=CLASSES)
    network.classifier = nn.Sequential(nn.Linear(24 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, CLASSES))
    return network


def _segmented(results: dict[str, torch.Tensor]) -> torch.Tensor:
    return results["out"]


def _backbone(models: Any) -> nn.Module:
    """A ResNet of a narrow block a stage, without its head."""
    network = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    return models._utils.IntermediateLayerGetter(network, {"layer2": "aux", "layer3": "out"})


def _deeplab(models: Any) -> nn.Module:
    head = models.segmentation.deeplabv3.DeepLabHead(256, CLASSES, (2, 4, 6))
    return models.segmentation.DeepLabV3(_backbone(models), head)


def _fcn(models: Any) -> nn.Module:
    return models.segmentation.FCN(_backbone(models), models.segmentation.fcn.FCNHead(256, CLASSES))


def _lraspp(models: Any) -> nn.Module:
    network = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
    backbone = models._utils.IntermediateLayerGetter(network, {"layer1": "low", "layer3": "high"})
    return models.segmentation.LRASPP(backbone, 64, 256, CLASSES, 16)


class _Detector(nn.Module):
    """The backbone, the pyramid and the head of a RetinaNet: what is trained of it."""

    def __init__(self, models: Any) -> None:
        super().__init__()
        network = models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1])
        self.backbone = models.detection.backbone_utils.BackboneWithFPN(
            network, {"layer2": "0", "layer3": "1", "layer4": "2"}, [128, 256, 512], 16
        )
        self.head = models.detection.retinanet.RetinaNetHead(16, 2, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        results = self.head(list(self.backbone(x).values()))
        return torch.cat([results["cls_logits"], results["bbox_regression"]], -1)


ROWS = [
    _plain("alexnet", 64),
    _row("vgg (small)", _vgg, 2, 3, 32, 32),
    _plain("squeezenet1_1"),
    _row("googlenet", lambda models: models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False), 1, 3, 32, 32),
    _row("densenet (small)", lambda models: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES), 2, 3, 32, 32),
    _plain("mnasnet0_5"),
    _plain("shufflenet_v2_x0_5"),
    _row("mobilenet_v2 0.25", lambda models: models.mobilenet_v2(num_classes=CLASSES, width_mult=0.25), 2, 3, 32, 32),
    _plain("mobilenet_v3_small"),
    _row("resnet18", lambda models: models.resnet18(num_classes=CLASSES), 1, 3, 32, 32),
    _row("wide_resnet (1 block a stage)", lambda models: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=32), 1, 3, 32, 32),
    _row("regnet_y (small)", lambda models: models.RegNet(models.regnet.BlockParams.from_init_params(depth=4, w_0=16, w_a=12.0, w_m=2.0, group_width=8, se_ratio=0.25), CLASSES), 2, 3, 32, 32),
    _row("efficientnet_v2 (3 stages)", lambda models: models.EfficientNet([models.efficientnet.FusedMBConvConfig(1, 3, 1, 8, 8, 1), models.efficientnet.FusedMBConvConfig(4, 3, 2, 8, 16, 1), models.efficientnet.MBConvConfig(4, 3, 2, 16, 24, 2)], 0.2, num_classes=CLASSES, last_channel=32), 2, 3, 32, 32),
    _row("convnext (small)", lambda models: models.ConvNeXt([models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)], num_classes=CLASSES), 2, 3, 32, 32),
    _row("vit_b_16 (small)", lambda models: models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=CLASSES), 2, 3, 32, 32),
    _row("swin_t (small)", lambda models: models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [4, 4], num_classes=CLASSES), 2, 3, 32, 32),
    _row("swin_v2_t (small)", lambda models: models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [4, 4], num_classes=CLASSES, block=models.swin_transformer.SwinTransformerBlockV2, downsample_layer=models.swin_transformer.PatchMergingV2), 2, 3, 32, 32),
    _row("maxvit_t (small)", lambda models: models.MaxVit((32, 32), 8, 4, [16, 24], [1, 1], 8, 0.0, num_classes=CLASSES), 2, 3, 32, 32),
    _row("fcn_resnet (1 block a stage)", _fcn, 1, 3, 64, 64, results=_segmented),
    _row("deeplabv3_resnet (1 block a stage)", _deeplab, 1, 3, 64, 64, results=_segmented),
    _row("lraspp_resnet (1 block a stage)", _lraspp, 1, 3, 64, 64, argument="input", results=_segmented),
    _row("retinanet's pyramid and head (1 block a stage)", _Detector, 1, 3, 64, 64),
    _row("r3d_18 (1 block a stage)", lambda models: models.video.VideoResNet(models.video.resnet.BasicBlock, [models.video.resnet.Conv3DSimple] * 4, [1, 1, 1, 1], models.video.resnet.BasicStem, CLASSES), 1, 3, 4, 16, 16),
    _row("r2plus1d_18 (1 block a stage)", lambda models: models.video.VideoResNet(models.video.resnet.BasicBlock, [models.video.resnet.Conv2Plus1D] * 4, [1, 1, 1, 1], models.video.resnet.R2Plus1dStem, CLASSES), 1, 3, 4, 16, 16),
]  # fmt: skip
