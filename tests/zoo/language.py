"""Rows of ``transformers`` that read text or sound, with two small layers each."""

from __future__ import annotations

from typing import Any

import transformers as hf
from torch import nn

from tests.numeric.draws import Draw, below, lengths, normal

from .row import Row

BATCH, TOKENS, VOCABULARY = 2, 12, 99
WIDTHS = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
ENCODER = WIDTHS | {"intermediate_size": 48, "max_position_embeddings": 40, "num_labels": 3}
DECODER = WIDTHS | {
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_key_value_heads": 2,
    "use_cache": False,
}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}  # fmt: skip
SEQUENCES = {"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}
SOUND = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16, 16, 24), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 2), "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "num_labels": 5, "classifier_proj_size": 16}  # fmt: skip

WORDS = {"input_ids": below(VOCABULARY, BATCH, TOKENS)}
MASKED = WORDS | {"attention_mask": lambda rng: lengths(BATCH, TOKENS)(rng).astype("int64")}
PAIRS = MASKED | {"decoder_input_ids": below(VOCABULARY, BATCH, 7)}
RECORDING = {"input_values": normal(BATCH, 400)}


def row_of(name: str, model: str, config: str, inputs: dict[str, Draw], sizes: dict[str, Any], **options: Any) -> Row:
    """A row of a model and a configuration by their names in ``transformers``."""

    return Row(f"transformers/{name}", lambda: made(model, config, **sizes), inputs, **options)


def made(model: str, config: str, **sizes: Any) -> nn.Module:
    """A model of ``transformers`` with random weights."""
    network = getattr(hf, model)(getattr(hf, config)(**sizes))
    if any("Experts" in type(part).__name__ for part in network.modules()):
        network.set_experts_implementation("batched_mm")  # the others' shapes depend on the data
    return network


def _encoder(name: str, model: str, config: str, **sizes: Any) -> Row:
    return row_of(name, model, config, MASKED, ENCODER | sizes)


def _decoder(name: str, model: str, config: str, **sizes: Any) -> Row:
    return row_of(name, model, config, WORDS, DECODER | sizes)


ENCODERS = [
    _encoder("bert", "BertForSequenceClassification", "BertConfig"),
    _encoder("bert for masked words", "BertForMaskedLM", "BertConfig"),
    _encoder("roberta", "RobertaForSequenceClassification", "RobertaConfig"),
    _encoder("distilbert", "DistilBertForTokenClassification", "DistilBertConfig"),
    _encoder("albert", "AlbertForSequenceClassification", "AlbertConfig", embedding_size=16),
    _encoder("electra", "ElectraForSequenceClassification", "ElectraConfig", embedding_size=16),
    _encoder("deberta-v2", "DebertaV2ForSequenceClassification", "DebertaV2Config", relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True),
    _encoder("deberta", "DebertaForSequenceClassification", "DebertaConfig", relative_attention=True, pos_att_type=["p2c", "c2p"]),
    _encoder("mpnet", "MPNetForSequenceClassification", "MPNetConfig"),
    _encoder("convbert", "ConvBertForSequenceClassification", "ConvBertConfig", embedding_size=32, conv_kernel_size=3),
    _encoder("squeezebert", "SqueezeBertForSequenceClassification", "SqueezeBertConfig", embedding_size=32),
    _encoder("mobilebert", "MobileBertForSequenceClassification", "MobileBertConfig", embedding_size=16, intra_bottleneck_size=16),
    _encoder("roformer", "RoFormerForSequenceClassification", "RoFormerConfig"),
    _encoder("modernbert", "ModernBertForSequenceClassification", "ModernBertConfig", local_attention=8, cls_token_id=1, sep_token_id=2),
    _encoder("esm", "EsmForSequenceClassification", "EsmConfig", mask_token_id=5, position_embedding_type="rotary", emb_layer_norm_before=True),
    _encoder("camembert for questions", "CamembertForQuestionAnswering", "CamembertConfig", num_labels=2),
    _encoder("layoutlm", "LayoutLMForTokenClassification", "LayoutLMConfig"),
    row_of("funnel", "FunnelForSequenceClassification", "FunnelConfig", MASKED, {"vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "num_labels": 3}),
    row_of("xlnet", "XLNetForSequenceClassification", "XLNetConfig", WORDS, {"vocab_size": VOCABULARY, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "num_labels": 3}),
    row_of("fnet", "FNetForSequenceClassification", "FNetConfig", WORDS, ENCODER),
    row_of("canine (1 layer)", "CanineForSequenceClassification", "CanineConfig", WORDS, ENCODER | {"num_hidden_layers": 1, "local_transformer_stride": 4, "num_hash_buckets": 64}),
]  # fmt: skip
DECODERS = [
    row_of("gpt2", "GPT2LMHeadModel", "GPT2Config", WORDS, GPT),
    row_of("gpt_neo", "GPTNeoForCausalLM", "GPTNeoConfig", WORDS, {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4, "max_position_embeddings": 40, "use_cache": False}),
    _decoder("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig"),
    row_of("gptj", "GPTJForCausalLM", "GPTJConfig", WORDS, GPT | {"rotary_dim": 4}),
    row_of("opt", "OPTForCausalLM", "OPTConfig", MASKED, DECODER | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    row_of("bloom", "BloomForCausalLM", "BloomConfig", WORDS, {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "use_cache": False}),
    _decoder("llama", "LlamaForCausalLM", "LlamaConfig"),
    _decoder("mistral", "MistralForCausalLM", "MistralConfig", sliding_window=4),
    _decoder("qwen2", "Qwen2ForCausalLM", "Qwen2Config"),
    _decoder("qwen3", "Qwen3ForCausalLM", "Qwen3Config", head_dim=8),
    _decoder("gemma", "GemmaForCausalLM", "GemmaConfig", head_dim=8),
    _decoder("gemma2", "Gemma2ForCausalLM", "Gemma2Config", head_dim=8, sliding_window=4),
    _decoder("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", head_dim=8, sliding_window=4),
    _decoder("phi", "PhiForCausalLM", "PhiConfig"),
    _decoder("phi3", "Phi3ForCausalLM", "Phi3Config"),
    _decoder("falcon", "FalconForCausalLM", "FalconConfig"),
    row_of("mpt", "MptForCausalLM", "MptConfig", WORDS, {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 40, "use_cache": False}),
    _decoder("stablelm", "StableLmForCausalLM", "StableLmConfig"),
    _decoder("olmo2", "Olmo2ForCausalLM", "Olmo2Config"),
    _decoder("granite", "GraniteForCausalLM", "GraniteConfig"),
    _decoder("cohere", "CohereForCausalLM", "CohereConfig"),
    _decoder("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config"),
    _decoder("mixtral (4 experts)", "MixtralForCausalLM", "MixtralConfig", num_local_experts=4),
    _decoder("qwen2_moe (4 experts)", "Qwen2MoeForCausalLM", "Qwen2MoeConfig", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, shared_expert_intermediate_size=24),
    row_of("mamba", "MambaForCausalLM", "MambaConfig", {"input_ids": below(VOCABULARY, BATCH, 6)}, WIDTHS | {"state_size": 4, "use_cache": False}),
    row_of("mamba2", "Mamba2ForCausalLM", "Mamba2Config", {"input_ids": below(VOCABULARY, BATCH, 6)}, WIDTHS | {"state_size": 4, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 4, "use_cache": False}),
    row_of("rwkv", "RwkvForCausalLM", "RwkvConfig", {"input_ids": below(VOCABULARY, BATCH, 6)}, WIDTHS | {"context_length": 40, "use_cache": False}, why_refused="in place"),
    row_of("gpt2 with labels", "GPT2LMHeadModel", "GPT2Config", WORDS | {"labels": below(VOCABULARY, BATCH, TOKENS)}, GPT, loss="output"),
]  # fmt: skip
SEQUENCE_TO_SEQUENCE = [
    row_of("t5", "T5ForConditionalGeneration", "T5Config", PAIRS, T5),
    row_of("t5, gated", "T5ForConditionalGeneration", "T5Config", PAIRS, T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    row_of("bart", "BartForConditionalGeneration", "BartConfig", PAIRS, SEQUENCES),
    row_of("mbart", "MBartForConditionalGeneration", "MBartConfig", PAIRS, SEQUENCES),
    row_of("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", PAIRS, SEQUENCES),
    row_of("marian", "MarianMTModel", "MarianConfig", PAIRS, SEQUENCES),
]  # fmt: skip
SOUNDS = [
    row_of("whisper", "WhisperForConditionalGeneration", "WhisperConfig", {"input_features": normal(BATCH, 16, 24), "decoder_input_ids": below(VOCABULARY, BATCH, 7)}, SEQUENCES | {"num_mel_bins": 16, "max_source_positions": 12, "max_target_positions": 16}),
    row_of("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", RECORDING, SOUND),
    row_of("wav2vec2, stable layer norm", "Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", RECORDING, SOUND | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}),
    row_of("hubert", "HubertForSequenceClassification", "HubertConfig", RECORDING, SOUND),
    row_of("wavlm", "WavLMForSequenceClassification", "WavLMConfig", RECORDING, SOUND | {"num_buckets": 16, "max_bucket_distance": 32}),
    row_of("audio_spectrogram_transformer", "ASTForAudioClassification", "ASTConfig", {"input_values": normal(BATCH, 32, 24)}, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "patch_size": 8, "frequency_stride": 6, "time_stride": 6, "max_length": 32, "num_mel_bins": 24}),
    row_of("speech_to_text", "Speech2TextForConditionalGeneration", "Speech2TextConfig", {"input_features": normal(BATCH, 32, 16), "decoder_input_ids": below(VOCABULARY, BATCH, 7)}, SEQUENCES | {"conv_channels": 24, "input_feat_per_channel": 16, "max_source_positions": 40, "max_target_positions": 16}),
]  # fmt: skip
SERIES = [
    row_of("time_series_transformer", "TimeSeriesTransformerForPrediction", "TimeSeriesTransformerConfig", {"past_values": normal(BATCH, 17), "past_time_features": normal(BATCH, 17, 1), "past_observed_mask": lambda rng: lengths(BATCH, 17)(rng).astype("float32"), "future_values": normal(BATCH, 4), "future_time_features": normal(BATCH, 4, 1)}, {"prediction_length": 4, "context_length": 10, "num_time_features": 1, "d_model": 16, "use_cache": False}, loss="output"),
    row_of("patchtst", "PatchTSTForPrediction", "PatchTSTConfig", {"past_values": normal(BATCH, 32, 3)}, {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 4, "num_hidden_layers": 2, "d_model": 16, "ffn_dim": 24, "prediction_length": 6, "loss": "mse"}, results=lambda results: results.prediction_outputs),
    row_of("patchtsmixer", "PatchTSMixerForPrediction", "PatchTSMixerConfig", {"past_values": normal(BATCH, 32, 3)}, {"num_input_channels": 3, "context_length": 32, "prediction_length": 6, "num_layers": 2, "loss": "mse"}, results=lambda results: results.prediction_outputs),
    row_of("decision_transformer", "DecisionTransformerModel", "DecisionTransformerConfig", {"states": normal(BATCH, 5, 6), "actions": normal(BATCH, 5, 3), "rewards": normal(BATCH, 5, 1), "returns_to_go": normal(BATCH, 5, 1), "timesteps": below(20, BATCH, 5), "attention_mask": lambda rng: lengths(BATCH, 5)(rng).astype("int64")}, {"state_dim": 6, "act_dim": 3, "hidden_size": 32, "n_layer": 2, "n_head": 4, "max_ep_len": 20, "use_cache": False}, results=lambda results: results.action_preds),
]  # fmt: skip
ROWS = [*ENCODERS, *DECODERS, *SEQUENCE_TO_SEQUENCE, *SOUNDS, *SERIES]
