"""Rows of ``timm``: classifiers of images, most of them with fewer and narrower layers than by their names alone."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.numeric.draws import normal

from .libraries import make_importable
from .row import Row

CLASSES = 5
FOUR = (1, 1, 1, 1)
NARROW = (8, 16, 24, 32)
RESNET = {"layers": FOUR, "channels": (16, 24, 32, 40), "stem_width": 8}
VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 32, "patch_size": 8}


def _row(name: str, size: int, **sizes: Any) -> Row:
    """A row of timm's registry, with sizes other than the registry's."""

    def make() -> nn.Module:
        make_importable()
        import timm

        return timm.create_model(name, num_classes=CLASSES, **sizes)

    return Row(f"timm/{name}{' (small)' if sizes else ''}", make, {"x": normal(2 if size < 96 else 1, 3, size, size)})


def _built(name: str, kind: str, size: int, **sizes: Any) -> Row:
    """A row of one of timm's classes, ``module.Class``, where the registry takes no other sizes."""

    def make() -> nn.Module:
        make_importable()
        import timm

        module, _, of_module = kind.partition(".")
        module = getattr(timm.models, module)
        named = {key: getattr(module, value) if isinstance(value, str) else value for key, value in sizes.items()}
        return getattr(module, of_module)(num_classes=CLASSES, **named)

    return Row(f"timm/{name} (small)", make, {"x": normal(2, 3, size, size)})


def _generated(name: str, family: str, size: int, *arguments: Any) -> Row:
    """A row of a family of timm's EfficientNets, with multipliers of width and depth."""

    def make() -> nn.Module:
        make_importable()
        import timm

        return getattr(timm.models.efficientnet, family)(name, *arguments, num_classes=CLASSES)

    return Row(f"timm/{name} (small)", make, {"x": normal(2, 3, size, size)})


def _of_blocks(name: str, kind: str, size: int = 64, **options: Any) -> Row:
    """A row of timm's networks of configured blocks, with two plain stages and one of its own kind."""

    def make() -> nn.Module:
        make_importable()
        import timm
        from timm.models.byobnet import ByoBlockCfg

        own = {"gs": 0, "br": 0.5} if kind != "bottle" else {}
        blocks = (ByoBlockCfg("bottle", 1, 16, 1, 0, 0.5), ByoBlockCfg(kind, 1, 32, 2, **(own | options)))
        return timm.create_model(name, num_classes=CLASSES, blocks=blocks, stem_chs=16)

    return Row(f"timm/{name} (2 blocks)", make, {"x": normal(2, 3, size, size)})


def _hrnet() -> nn.Module:
    make_importable()
    import copy

    from timm.models import hrnet

    sizes = copy.deepcopy(hrnet.cfg_cls["hrnet_w18_small"])
    for number, stage in enumerate(("stage1", "stage2", "stage3", "stage4")):
        branches = max(1, number + 1)
        sizes[stage] |= {"num_modules": 1, "num_blocks": (1,) * branches, "num_channels": (8, 12, 16, 20)[:branches]}
    return hrnet.HighResolutionNet(sizes, num_classes=CLASSES)


ROWS = [
    _row("resnet18", 32, **RESNET),
    _row("resnet26d", 32, **RESNET),
    _row("resnext50_32x4d", 32, **RESNET, cardinality=4),
    _row("seresnet18", 32, **RESNET),
    _row("ecaresnet26t", 32, **RESNET),
    _row("skresnet18", 32, **RESNET),
    _row("res2net50_26w_4s", 32, **RESNET),
    _row("resnest14d", 64, **RESNET),
    _row("resnetblur18", 32, **RESNET),
    _row("regnetx_002", 32, depth=4, w0=16, wa=12.0, wm=1.5, group_size=8),
    _row("regnety_002", 32, depth=4, w0=16, wa=12.0, wm=1.5, group_size=8),
    _row("densenet121", 32, growth_rate=8, block_config=(2, 2, 2, 2)),
    _row("dpn48b", 32, k_sec=FOUR, inc_sec=(8, 8, 8, 8), k_r=32, groups=4),
    _row("dla46_c", 32, levels=(1, 1, 1, 1, 1, 1), channels=(8, 12, 16, 20, 24, 32)),
    Row("timm/hrnet_w18_small (1 block a branch)", _hrnet, {"x": normal(2, 3, 64, 64)}),
    _row("ese_vovnet19b_dw", 32, stem_chs=(8, 8, 16), stage_conv_chs=(16, 16, 24, 24), stage_out_chs=(24, 32, 40, 48), layer_per_block=2),
    _row("dm_nfnet_f0", 64, depths=FOUR, channels=(16, 24, 32, 40), group_size=8, bottle_ratio=0.5),
    _row("nf_regnet_b0", 32, depths=FOUR, channels=(16, 24, 32, 40), group_size=8),
    _generated("efficientnet_b0", "_gen_efficientnet", 32, 0.5, 0.1),
    _generated("efficientnetv2_s", "_gen_efficientnetv2_s", 32, 0.25, 0.1),
    _row("mobilenetv3_small_050", 32),
    _row("mobilenetv4_conv_small_035", 64),
    _row("lcnet_035", 32),
    _row("tinynet_e", 32),
    _row("mnasnet_small", 32),
    _row("rexnet_100", 32, width_mult=0.25, depth_mult=0.3),
    _row("ghostnet_050", 32),
    _of_blocks("repvgg_a0", "rep"),
    _of_blocks("mobileone_s0", "one"),
    _of_blocks("halonet26t", "self_attn"),
    _of_blocks("lambda_resnet26t", "self_attn"),
    _of_blocks("botnet26t_256", "self_attn", 256),
    _of_blocks("gernet_s", "basic"),
    _row("edgenext_xx_small", 64, depths=(1, 2, 2, 2), dims=NARROW, heads=(4, 4, 4, 4)),
    _built("efficientformer_l1", "efficientformer.EfficientFormer", 224, depths=FOUR, embed_dims=NARROW, num_vit=1),
    _row("fastvit_t8", 64, layers=FOUR, embed_dims=(16, 32, 64, 128)),
    _row("efficientvit_m0", 224, embed_dim=(16, 32, 48), depth=(1, 1, 1), num_heads=(2, 2, 2)),
    _row("efficientvit_b0", 64, widths=(8, 8, 16, 24, 32), depths=(1, 1, 1, 1, 1), head_widths=(32, 32), head_dim=8),
    _row("convnext_atto", 32, depths=FOUR, dims=NARROW),
    _row("inception_next_atto", 64, depths=FOUR, dims=(16, 24, 32, 40)),
    _row("vit_tiny_patch16_224", 32, **VIT),
    _row("vit_relpos_small_patch16_224", 32, **VIT),
    _row("eva02_tiny_patch14_224", 32, **VIT),
    _row("deit3_small_patch16_224", 32, **VIT),
    _row("cait_xxs24_224", 32, **VIT),
    _row("xcit_nano_12_p16_224", 32, **VIT | {"num_heads": 4}),
    _row("pit_ti_224", 64, img_size=64, base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(2, 4, 8)),
    _row("tnt_s_patch16_224", 32, img_size=32, patch_size=16, embed_dim=48, inner_dim=12, depth=2, num_heads_inner=2, num_heads_outer=3),
    _row("twins_pcpvt_small", 64, img_size=64, depths=FOUR, embed_dims=NARROW, num_heads=(1, 2, 3, 4)),
    _row("twins_svt_small", 64, img_size=64, depths=FOUR, embed_dims=NARROW, num_heads=(1, 2, 3, 4)),
    _row("coat_lite_tiny", 64, img_size=64, embed_dims=(16, 24, 32, 40), serial_depths=FOUR),
    _row("convit_tiny", 32, **VIT | {"num_heads": 4}),
    _row("visformer_tiny", 64, img_size=64, embed_dim=48, depth=(1, 1, 1), num_heads=3),
    _row("coatnet_nano_rw_224", 64, img_size=64, embed_dim=(16, 32, 32, 64), depths=FOUR, stem_width=(8, 16)),
    _row("maxvit_nano_rw_256", 64, img_size=64, embed_dim=(32, 32, 64, 64), depths=FOUR, stem_width=(8, 16)),
    _built("nest_tiny", "nest.Nest", 64, img_size=64, embed_dims=(16, 24, 32), num_heads=(2, 3, 4), depths=(1, 1, 1)),
    _built("poolformerv2", "metaformer.MetaFormer", 32, depths=FOUR, dims=(16, 32, 32, 32)),
    _built("mixer_s32_224", "mlp_mixer.MlpMixer", 32, img_size=32, patch_size=8, num_blocks=2, embed_dim=32),
    _built("gmlp_ti16_224", "mlp_mixer.MlpMixer", 32, img_size=32, patch_size=8, num_blocks=2, embed_dim=32, mlp_ratio=6, block_layer="SpatialGatingBlock", mlp_layer="GatedMlp"),
    _built("resmlp_12_224", "mlp_mixer.MlpMixer", 32, img_size=32, patch_size=8, num_blocks=2, embed_dim=32, mlp_ratio=4, block_layer="ResBlock", norm_layer="Affine"),
    _built("volo_d1_224", "volo.VOLO", 64, img_size=64, layers=FOUR, embed_dims=(16, 32, 32, 32), num_heads=(2, 4, 4, 4)),
    _row("sequencer2d_s", 56, img_size=56, layers=FOUR, embed_dims=NARROW, hidden_sizes=(4, 8, 8, 8)),
    _row("davit_tiny", 56, depths=FOUR, embed_dims=NARROW, num_heads=(1, 2, 3, 4)),
    _built("gcvit_xxtiny", "gcvit.GlobalContextVit", 64, img_size=64, window_ratio=(16, 16, 16, 32), embed_dim=8, depths=FOUR, num_heads=(1, 2, 4, 8)),
    _row("starnet_s1", 32, depths=FOUR, base_dim=8),
    _row("repvit_m0_9", 64, embed_dim=NARROW, depth=FOUR),
    _row("mambaout_femto", 32, depths=FOUR, dims=NARROW),
    _row("fasternet_t0", 32, depths=FOUR, embed_dim=8),
    _row("rdnet_tiny", 64, num_init_features=16, growth_rates=(8, 8, 8, 8), num_blocks_list=(1, 1, 1, 1), is_downsample_block=(None, True, True, True), transition_compression_ratio=0.5, ls_init_value=1e-6, block_type=["Block"] * 4),
]  # fmt: skip
