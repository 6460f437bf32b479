"""Tiny random models of the architectures mlx-lm has: one config whose fields fit most, and what each needs besides."""

from __future__ import annotations

import copy
import importlib
from typing import Any

VOCABULARY = 264

COMMON: dict[str, Any] = {
    # Sizes, in the words of the different model files.
    "hidden_size": 32,
    "hidden_dim": 32,
    "d_model": 32,
    "n_embd": 32,
    "model_dim": 32,
    "block_dim": 32,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layers": 4,
    "n_layer": 4,
    "num_transformer_layers": 4,
    "intermediate_size": 64,
    "ffn_hidden_size": 64,
    "ff_intermediate_size": 64,
    "n_inner": 64,
    "intermediate_size_mlp": 64,
    "shared_intermediate_size": 64,
    "block_ff_dim": 64,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_heads": 4,
    "n_head": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "n_kv_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "block_size": 512,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "tie_word_embeddings": False,
    # Mixture of experts.
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_shared_expert": 1,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "num_dense_layers": 1,
    "use_expert_bias": True,
    # Multi-head latent attention.
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # Sliding windows: shorter than the tests' sequences, so that they wrap.
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_window_size": 8,
    # Recurrent and convolutional layers.
    "state_size": 8,
    "conv_kernel": 4,
    "conv_L_cache": 3,
    "conv_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip

FULL, SLIDING = "full_attention", "sliding_attention"

MIXED = [SLIDING, FULL, SLIDING, FULL]
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA4_SCALING = {**ROPE, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
MUP = {"logits_scaling": 1.0, "attention_multiplier": 0.35, "embedding_multiplier": 1.0, "residual_multiplier": 1.0}
MINICPM = {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 2.0}
LFM2 = {
    "layer_types": ["conv", FULL, "conv", FULL],
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
}
LONGCAT = {"zero_expert_num": 1, "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "num_layers": 2}
GEMMA4 = {
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "layer_types": MIXED,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "tie_word_embeddings": True,
}

UNTESTED = {
    "bitnet": "its kernels need a Metal GPU",
    "muse_spark": "its kernels need a Metal GPU",
    "olmo": "needs the package ai2-olmo",
    "phi3small": "mlx-lm's block-sparse mask has a least size that is not tiny",
    "prism_hadamard_qwen35": "loads only packs of its own publisher",
}
"""Model files of mlx-lm without a tiny model here, and why."""

UNSTEERABLE = ("iquestloopcoder",)
"""Model files that compute their layers from outside, by parts: there is no call to tap."""

# What each architecture needs besides; an empty entry is served by COMMON alone. Named after its model file in mlx-lm,
# or in this project.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Klear": {},
    "afm7": {"num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": MIXED},
    "apertus": {"post_norm": True, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0, 2], "conv_window": 2},
    "baichuan": {},
    "baichuan-alibi": {"model_type": "baichuan", "position": "alibi"},
    "bailing_hybrid": {"layer_group_size": 2, "group_norm_size": 2},
    "bailing_moe": {},
    "bailing_moe_linear": {"layer_group_size": 2, "group_norm_size": 2},
    "bailing_moe_v3": {},
    "cohere": {},
    "cohere2": {},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek": {},
    "deepseek_v2": {"rope_scaling": YARN, "q_lora_rank": None},
    "deepseek_v3": {"rope_scaling": YARN},
    "deepseek_v32": {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 8},
    "deepseek_v41": {
        "text_config": {
            "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8, "o_groups": 2, "o_lora_rank": 32, "head_dim": 16,
        }
    },
    "dots1": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone": {},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": MIXED, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {
        "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_d_conv": 4, "mamba_expand": 1,
    },
    "gear": {"layer_types": MIXED},
    "gemma": {},
    "gemma2": {},
    "gemma3": {"text_config": {"sliding_window_pattern": 2}},
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {
        "text_config": {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": MIXED,
            "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 4,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        }
    },
    "gemma4": {"text_config": GEMMA4},
    "gemma4_text": GEMMA4,
    "glm": {},
    "glm4": {},
    "glm4_moe": {"rope_scaling": None, "use_qk_norm": True},
    "glm4_moe_lite": {},
    "glm_moe_dsa": {
        "index_head_dim": 16, "index_n_heads": 2, "index_topk": 8, "topk_method": "noaux_tc",
        "scoring_func": "sigmoid", "moe_layer_freq": 1, "rope_parameters": ROPE,
    },
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": MUP,
    "granitemoe": MUP,
    "granitemoehybrid": {
        **MUP, "layer_types": ["mamba", "attention", "mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 8,
        "mamba_proj_bias": False, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_conv_bias": True,
    },
    "helium": {},
    "hunyuan": {
        "use_mixed_mlp_moe": True, "use_qk_norm": True, "use_cla": True, "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
    },
    "hunyuan_v1_dense": {},
    "internlm2": {},
    "internlm3": {},
    "iquestloopcoder": {},
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
        "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 1,
    },
    "kimi_k25": {},
    "kimi_k3": {
        "text_config": {
            "linear_attn_config": {
                "kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 8,
                "short_conv_kernel_size": 4,
            },
        }
    },
    "kimi_linear": {
        "linear_attn_config": {
            "kda_layers": [1, 3], "full_attn_layers": [2, 4], "num_heads": 4, "head_dim": 8,
            "short_conv_kernel_size": 4,
        },
        "model_max_length": 128,
    },
    "kimi_vl": {},
    "laguna": {},
    "lfm2-vl": {"text_config": LFM2},
    "lfm2": LFM2,
    "lfm2_moe": LFM2,
    "lille-130m": {"n_embd": 128},
    "llama": {},
    "llama4": {
        "text_config": {
            "attention_chunk_size": 8, "interleave_moe_layer_step": 2, "rope_scaling": None, "use_qk_norm": True,
            "num_experts_per_tok": 1,
        }
    },
    "llama4_text": {"no_rope_layers": [1, 0, 1, 0], "use_qk_norm": True},
    "longcat_flash": {**LONGCAT, "attention_method": "MLA", "zero_expert_type": "identity"},
    "longcat_flash_ngram": LONGCAT,
    "mamba": {},
    "mamba2": {"n_groups": 1, "time_step_limit": (0.0, 10.0)},
    "mellum": {"layer_types": MIXED, "rope_parameters": {SLIDING: ROPE, FULL: ROPE}},
    "mimo": {},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 0, 1], "moe_layer_freq": [0, 1, 1, 1], "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
        "swa_rope_theta": 10000.0, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "minicpm": MINICPM,
    "minicpm3": {**MINICPM, "rope_scaling": {"original_max_position_embeddings": 64}},
    "minimax": {"rotary_dim": 4},
    "minimax_m3_vl": {},
    "ministral3": {"layer_types": MIXED, "rope_parameters": LLAMA4_SCALING},
    "mistral3": {},
    "mistral4": {"rope_parameters": LLAMA4_SCALING},
    "mixtral": {},
    "muse_glimmer": {},
    "nanbeige": {},
    "nanochat": {},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": False, "ffn_mult": 1.0}},
            {"attention": {"no_op": True, "n_heads_in_group": None}, "ffn": {"no_op": False, "ffn_mult": 1.0}},
            {"attention": {"no_op": False, "n_heads_in_group": 2}, "ffn": {"no_op": True, "ffn_mult": None}},
            {"attention": {"no_op": False, "n_heads_in_group": 4}, "ffn": {"no_op": False, "ffn_mult": 1.0}},
        ]
    },
    "nemotron_h": {
        "hybrid_override_pattern": ["M", "*", "-", "M", "*"], "mamba_num_heads": 4, "mamba_head_dim": 8,
        "mamba_proj_bias": False, "ssm_state_size": 8, "n_groups": 1,
    },
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {"linear_allow_neg_eigval": False},
    "olmoe": {},
    "openelm": {
        "ffn_dim_divisor": 8, "num_query_heads": [4] * 4, "num_kv_heads": [2] * 4, "ffn_multipliers": [1.0] * 4,
    },
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "phixtral": {"rotary_dim": 4, "num_vocab": VOCABULARY},
    "pixtral": {},
    "plamo": {"n_shared_head": 2},
    "plamo2": {},
    "plamo3": {},
    "qwen": {"kv_channels": 8},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen2_vl": {},
    "qwen3": {},
    "qwen3_5": {},
    "qwen3_5_moe": {},
    "qwen3_moe": {},
    "qwen3_next": {},
    "qwen3_vl": {},
    "qwen3_vl_moe": {},
    "recurrent_gemma": {"conv1d_width": 4, "logits_soft_cap": 30.0, "block_types": ["recurrent", "attention"]},
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "spark2_5": {"rope_parameters": {SLIDING: ROPE, FULL: ROPE}, "layer_types": MIXED},
    "stablelm": {"use_qkv_bias": True},
    "starcoder2": {},
    "step3p5": {"num_attention_groups": 2, "layer_types": MIXED, "moe_top_k": 2, "share_expert_dim": 16},
    "talkie": {},
    "telechat3": {},
    "youtu_llm": {},
}  # fmt: skip


def config(name: str) -> dict[str, Any]:
    """The tiny config of ``name``; models that nest their text model's config get it both ways."""
    own = ARCHITECTURES[name]
    nested = {**COMMON, "model_type": name, **own.get("text_config", {})}
    return copy.deepcopy({**COMMON, "model_type": name, **own, "text_config": nested})


def build(name: str, half: bool = False) -> Any:
    """A tiny random model of the architecture ``name``, of the code that would serve it. On the engine's thread.

    ``half`` is for bfloat16, with 4-bit experts: MLX has no half-precision experts on a CPU otherwise.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx.utils import tree_map
    from mlx_lm.models.switch_layers import SwitchLinear

    from mlx_emotion.architectures import find_classes

    tiny = config(name)
    own = find_classes(tiny)
    module = importlib.import_module(f"mlx_lm.models.{tiny['model_type']}") if own is None else None
    model_class, args_class = own or (module.Model, module.ModelArgs)
    mx.random.seed(0)
    model = model_class(args_class.from_dict(tiny))

    def noisy(p: mx.array) -> mx.array:
        # Some weights begin as zeros (routers) or ones (norms), where a mistake could hide.
        if not mx.issubdtype(p.dtype, mx.floating):
            return p
        return (p + 0.05 * mx.random.normal(p.shape)).astype(mx.bfloat16 if half else p.dtype)

    model.update(tree_map(noisy, model.parameters()))
    if half:
        nn.quantize(model, 32, 4, class_predicate=lambda _, m: isinstance(m, SwitchLinear))
    model.eval()
    mx.eval(model)
    return model
