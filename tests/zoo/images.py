"""Rows of ``transformers`` that read images, with few and narrow layers."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.numeric.draws import below, normal, uniform

from .language import made, row_of
from .row import Row

BATCH = 2
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32, "patch_size": 8, "num_labels": 5}  # fmt: skip
STAGES = {"num_labels": 5, "drop_path_rate": 0.0}
PYRAMID = STAGES | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4]}
RESNET = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "embedding_size": 12, "layer_type": "basic"}
DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 5, "num_labels": 3}  # fmt: skip
TEXT = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 98, "pad_token_id": 0}  # fmt: skip


def _pixels(size: int) -> dict[str, Any]:
    return {"pixel_values": normal(BATCH, 3, size, size)}


def _images(name: str, model: str, config: str, sizes: dict[str, Any], size: int = 32, **options: Any) -> Row:
    return row_of(name, model, config, _pixels(size), sizes, **options)


def _backbone(config: str, **sizes: Any) -> Any:
    return getattr(transformers, config)(**sizes)


def _boxes(results: Any) -> torch.Tensor:
    return torch.cat([results.logits, results.pred_boxes], -1)


CLASSIFIERS = [
    _images("vit", "ViTForImageClassification", "ViTConfig", VIT),
    _images("deit, distilled", "DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT),
    _images("beit", "BeitForImageClassification", "BeitConfig", VIT | {"use_relative_position_bias": True, "drop_path_rate": 0.0}),
    _images("data2vec-vision", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", VIT | {"use_shared_relative_position_bias": True}),
    _images("dinov2, swiglu", "Dinov2ForImageClassification", "Dinov2Config", VIT | {"use_swiglu_ffn": True}),
    _images("swin (2 stages)", "SwinForImageClassification", "SwinConfig", STAGES | {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}),
    _images("swinv2 (2 stages)", "Swinv2ForImageClassification", "Swinv2Config", STAGES | {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}),
    _images("convnext (1 block a stage)", "ConvNextForImageClassification", "ConvNextConfig", STAGES | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    _images("convnextv2 (1 block a stage)", "ConvNextV2ForImageClassification", "ConvNextV2Config", STAGES | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    _images("resnet (1 block a stage)", "ResNetForImageClassification", "ResNetConfig", RESNET | {"num_labels": 5, "layer_type": "bottleneck"}),
    _images("regnet (1 block a stage)", "RegNetForImageClassification", "RegNetConfig", {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "groups_width": 8, "num_labels": 5}),
    _images("bit (1 block a stage)", "BitForImageClassification", "BitConfig", {"embedding_size": 32, "hidden_sizes": [32, 64, 64, 64], "depths": [1, 1, 1, 1], "num_groups": 4, "num_labels": 5}),
    _images("mobilenet_v1 0.25", "MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25, "num_labels": 5}),
    _images("efficientnet (4 stages)", "EfficientNetForImageClassification", "EfficientNetConfig", {"width_coefficient": 0.5, "depth_coefficient": 1.0, "image_size": 32, "kernel_sizes": [3, 3, 5, 3], "in_channels": [32, 16, 24, 40], "out_channels": [16, 24, 40, 80], "strides": [1, 2, 2, 2], "num_block_repeats": [1, 1, 2, 1], "expand_ratios": [1, 6, 6, 6], "hidden_dim": 640, "num_labels": 5}),
    _images("levit (1 block a stage)", "LevitForImageClassification", "LevitConfig", {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8], "num_labels": 5}, 64),
    _images("mobilevit", "MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 16, 20, 24, 40], "num_attention_heads": 4, "num_labels": 5}, 64),
    _images("mobilevitv2 0.25", "MobileViTV2ForImageClassification", "MobileViTV2Config", {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1], "base_attn_unit_dims": [64, 64, 64], "num_labels": 5}, 64),
    _images("poolformer (1 block a stage)", "PoolFormerForImageClassification", "PoolFormerConfig", STAGES | {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, 64),
    _images("pvt (1 block a stage)", "PvtForImageClassification", "PvtConfig", PYRAMID | {"image_size": 64}, 64),
    _images("pvt_v2 (1 block a stage)", "PvtV2ForImageClassification", "PvtV2Config", PYRAMID | {"image_size": 64}, 64),
    _images("focalnet (2 stages)", "FocalNetForImageClassification", "FocalNetConfig", STAGES | {"image_size": 32, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]}),
    _images("cvt (1 to 3 blocks a stage)", "CvtForImageClassification", "CvtConfig", {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "drop_path_rate": [0.0, 0.0, 0.0], "num_labels": 5}),
    _images("swiftformer (1 block a stage)", "SwiftFormerForImageClassification", "SwiftFormerConfig", {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "num_labels": 5}, 64),
    _images("ijepa", "IJepaForImageClassification", "IJepaConfig", VIT),
    _images("hiera (2 stages)", "HieraForImageClassification", "HieraConfig", {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1], "num_heads": [1, 2], "num_query_pool": 1, "masked_unit_attention": [True, False], "num_labels": 5}, 64),
    _images("hgnet_v2 (1 layer a block)", "HGNetV2ForImageClassification", "HGNetV2Config", {"hidden_sizes": [16, 24, 32, 40], "stem_channels": [3, 8, 12], "stage_in_channels": [12, 16, 24, 32], "stage_mid_channels": [8, 8, 12, 12], "stage_out_channels": [16, 24, 32, 40], "stage_num_blocks": [1, 1, 1, 1], "stage_numb_of_layers": [1, 1, 1, 1], "num_labels": 5}),
    row_of("videomae", "VideoMAEForVideoClassification", "VideoMAEConfig", {"pixel_values": normal(BATCH, 4, 3, 16, 16)}, VIT | {"image_size": 16, "num_frames": 4}),
    row_of("timesformer", "TimesformerForVideoClassification", "TimesformerConfig", {"pixel_values": normal(BATCH, 4, 3, 16, 16)}, VIT | {"image_size": 16, "num_frames": 4}),
    row_of("vivit", "VivitForVideoClassification", "VivitConfig", {"pixel_values": normal(BATCH, 4, 3, 16, 16)}, VIT | {"image_size": 16, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    _images("perceiver", "PerceiverForImageClassificationConvProcessing", "PerceiverConfig", {"num_latents": 8, "d_latents": 32, "d_model": 64, "num_self_attends_per_block": 1, "num_self_attention_heads": 4, "num_cross_attention_heads": 1, "image_size": 32, "num_labels": 5}),
]  # fmt: skip
DENSE = [
    row_of("vit_mae", "ViTMAEForPreTraining", "ViTMAEConfig", _pixels(32) | {"noise": uniform(BATCH, 16)}, VIT | {"decoder_num_attention_heads": 4, "decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 32}, loss="output"),
    _images("segformer (1 block a stage)", "SegformerForSemanticSegmentation", "SegformerConfig", PYRAMID | {"decoder_hidden_size": 16}, 64),
    _images("glpn (1 block a stage)", "GLPNForDepthEstimation", "GLPNConfig", PYRAMID | {"decoder_hidden_size": 16}, 64, results=lambda results: results.predicted_depth),
    _images("dpt", "DPTForDepthEstimation", "DPTConfig", VIT | {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 12, 16, 24], "fusion_hidden_size": 12}, results=lambda results: results.predicted_depth),
    Row("transformers/upernet", lambda: made("UperNetForSemanticSegmentation", "UperNetConfig", backbone_config=_backbone("ConvNextConfig", hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]), hidden_size=12, use_auxiliary_head=False, num_labels=5), _pixels(64)),
    Row("transformers/depth_anything", lambda: made("DepthAnythingForDepthEstimation", "DepthAnythingConfig", backbone_config=_backbone("Dinov2Config", hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=28, patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False), reassemble_hidden_size=32, neck_hidden_sizes=[8, 12, 16, 24], fusion_hidden_size=12, head_hidden_size=8), _pixels(28), lambda results: results.predicted_depth),
    _images("swin2sr (1 block)", "Swin2SRForImageSuperResolution", "Swin2SRConfig", {"image_size": 16, "embed_dim": 24, "depths": [2], "num_heads": [3], "window_size": 4, "drop_path_rate": 0.0}, 16, results=lambda results: results.reconstruction),
    _images("yolos", "YolosForObjectDetection", "YolosConfig", VIT | {"image_size": [32, 32], "num_detection_tokens": 5}, results=_boxes),
    Row("transformers/detr", lambda: made("DetrForObjectDetection", "DetrConfig", backbone_config=_backbone("ResNetConfig", **RESNET, out_features=["stage4"]), **DETR), _pixels(64), _boxes),
    Row("transformers/conditional_detr", lambda: made("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", backbone_config=_backbone("ResNetConfig", **RESNET, out_features=["stage4"]), **DETR), _pixels(64), _boxes),
    Row("transformers/deformable_detr", lambda: made("DeformableDetrForObjectDetection", "DeformableDetrConfig", backbone_config=_backbone("ResNetConfig", **RESNET, out_features=["stage2", "stage3", "stage4"]), **DETR | {"decoder_layers": 2}, num_feature_levels=3, encoder_n_points=2, decoder_n_points=2), _pixels(64), _boxes),
    row_of("clip", "CLIPModel", "CLIPConfig", {"input_ids": below(98, BATCH, 8)} | _pixels(32), {"text_config": TEXT, "vision_config": VIT, "projection_dim": 16}),
    row_of("siglip", "SiglipModel", "SiglipConfig", {"input_ids": below(98, BATCH, 16)} | _pixels(32), {"text_config": TEXT, "vision_config": VIT}),
    row_of("clipseg", "CLIPSegForImageSegmentation", "CLIPSegConfig", {"input_ids": below(98, BATCH, 8)} | _pixels(32), {"text_config": TEXT, "vision_config": VIT, "projection_dim": 16, "extract_layers": [0, 1], "reduce_dim": 8, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}),
]  # fmt: skip
ROWS = [*CLASSIFIERS, *DENSE]
