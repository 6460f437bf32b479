"""Tiny random checkpoints of the paper's models, in the layout of the Hugging Face hub, with their chat templates.

transformers (with torch) writes those it has; Qwen v1 and Baichuan 2, which it has not, are written
from the model code that serves them, under the names of the released files.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_emotion.engine import shared

GENERATE = "{% if add_generation_prompt %}"


def chatml(default: str = "", generate: str = "<|im_start|>assistant\n") -> str:
    """ChatML, with the system message it puts where none is given."""
    inserted = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + default + "<|im_end|>\n' }}{% endif %}"
    )
    return (
        (inserted if default else "")
        + "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        + GENERATE + "{{ '" + generate + "' }}{% endif %}"
    )  # fmt: skip


LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{% if loop.first and system %}"
    "{{ bos_token + '[INST] <<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    + GENERATE + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)  # fmt: skip
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    + GENERATE + "{{ '<start_of_turn>model\n' }}{% endif %}"
)  # fmt: skip

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
LLAMA_3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONG_ROPE = {  # MiniCPM3's factors are the same, short and long
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 1.1, 1.2, 1.3],
    "original_max_position_embeddings": 512,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A model of the paper: its class in transformers (or none), its config, its marks and its template."""

    kind: str | None
    config: dict[str, Any] = field(default_factory=dict)
    marks: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    template: str | None = None
    end: str = "<|im_end|>"
    begin: str | None = None


QWEN_DEFAULT = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
LLAMA_MARKS = ("<s>", "</s>")
FAMILIES = {
    "llama-3.1": Family(
        "Llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA_3_ROPE},
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), LLAMA_3, "<|eot_id|>",
        "<|begin_of_text|>",
    ),
    "llama-2-7b": Family("Llama", {"num_key_value_heads": 4}, LLAMA_MARKS, LLAMA_2, "</s>", "<s>"),
    "llama-2-13b": Family(
        "Llama", {"num_key_value_heads": 4, "num_hidden_layers": 4, "hidden_size": 128}, LLAMA_MARKS, LLAMA_2, "</s>",
        "<s>",
    ),
    "qwen2.5": Family("Qwen2", {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6}, template=chatml(QWEN_DEFAULT)),
    "qwen2": Family("Qwen2", {"rope_theta": 1000000.0}, template=chatml("You are a helpful assistant.")),
    "qwen1.5": Family("Qwen2", {"num_key_value_heads": 4}, template=chatml("You are a helpful assistant")),
    "yi": Family("Llama", {"rope_theta": 5000000.0, "num_key_value_heads": 1}, template=chatml()),
    "vicuna": Family("Llama", {"num_key_value_heads": 4}, LLAMA_MARKS, None, "</s>", "<s>"),
    "gemma": Family(
        "Gemma", {"head_dim": 32, "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh",
                  "tie_word_embeddings": True},
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), GEMMA, "<end_of_turn>", "<bos>",
    ),
    "minicpm3": Family(
        "MiniCPM3", {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
                     "v_head_dim": 16, "num_key_value_heads": 4, "scale_emb": 12, "scale_depth": 1.4,
                     "dim_model_base": 16, "rope_scaling": LONG_ROPE},
        template=chatml(),
    ),
    "qwen": Family(None, {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 3, "kv_channels": 16, "intermediate_size": 256, "layer_norm_epsilon": 1e-6,
        "no_bias": True, "vocab_size": 512, "seq_length": 512,
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    }),
    "baichuan2-7b": Family(None, {
        "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "hidden_size": 64,
        "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512, "model_max_length": 512, "tie_word_embeddings": False, "vocab_size": 600,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }),
}  # fmt: skip
OTHERS = {
    # Wide enough for groups of 128 weights.
    "wide": Family(None, {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
        "vocab_size": 264, "max_position_embeddings": 512, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }, template=chatml()),
}  # fmt: skip
FAMILIES["baichuan2-13b"] = Family(None, {**FAMILIES["baichuan2-7b"].config, "position": "alibi"})
ALL = {**FAMILIES, **OTHERS}
WITH_TRANSFORMERS = tuple(name for name, family in FAMILIES.items() if family.kind)


def write_tokenizer(folder: Path, family: Family) -> int:
    """A byte-level tokenizer with the family's marks and template; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<unk>", *family.marks, *alphabet])}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    begin = {"bos_token": family.begin} if family.begin else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=family.end, additional_special_tokens=list(family.marks), **begin
    )
    tokenizer.chat_template = family.template
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_sentencepiece(folder: Path, size: int) -> None:
    """A byte-pair sentencepiece model trained on a few lines, with Baichuan's reserved pieces."""
    import sentencepiece

    text = "the cat sat on a mat and then it saw 12 birds in the old tree while rain fell 你好 世界 "
    lines = [text[i:] + text[:i] for i in range(len(text))]
    with open(folder / "tokenizer.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines * 4), model_writer=file, model_type="bpe", vocab_size=size, byte_fallback=True,
            pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, add_dummy_prefix=False,
            user_defined_symbols=["<reserved_106>", "<reserved_107>"], normalization_rule_name="identity",
            remove_extra_whitespaces=False, minloglevel=2,
        )  # fmt: skip


def write(name: str, folder: Path) -> Path:
    """Write the checkpoint of ``name``; needs torch for those that transformers writes."""
    folder.mkdir(parents=True, exist_ok=True)
    family = ALL[name]
    (_write_with_transformers if family.kind else _write_with_mlx)(name, folder, family)
    return folder


def _write_with_transformers(name: str, folder: Path, family: Family) -> None:
    import torch
    import transformers

    size = write_tokenizer(folder, family)
    legacy = dict(family.config)
    rope = {"rope_theta": legacy.pop("rope_theta", 10000.0), "rope_type": "default", **legacy.pop("rope_scaling", {})}
    ends = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    config = getattr(transformers, f"{family.kind}Config")(
        **{**SIZES, **legacy, "vocab_size": size, "rope_parameters": rope, "bos_token_id": None, "pad_token_id": None,
           "eos_token_id": ["<unk>", *family.marks].index(ends)}
    )  # fmt: skip
    torch.manual_seed(len(name))
    model = getattr(transformers, f"{family.kind}ForCausalLM")(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn_like(value)
            value.copy_(1 + 0.1 * noise if "norm" in key and family.kind != "Gemma" else 0.15 * noise)
    model.save_pretrained(folder)
    # The released files say it the older way.
    saved = json.loads((folder / "config.json").read_text())
    saved.update({k: v for k, v in family.config.items() if k.startswith("rope")})
    saved.pop("rope_parameters", None)
    saved["rope_theta"] = rope["rope_theta"]
    (folder / "config.json").write_text(json.dumps(saved))


def _write_with_mlx(name: str, folder: Path, family: Family) -> None:
    config = dict(family.config)
    if config["model_type"] == "qwen":
        tokens = [bytes([b]) for b in range(256)] + [b"th", b"he", b"the", b" a", b" the"]
        lines = (base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
        (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    elif config["model_type"] == "llama":
        write_tokenizer(folder, family)
    else:
        write_sentencepiece(folder, 480)
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BaichuanTokenizer"}))
    (folder / "config.json").write_text(json.dumps(config))

    def work() -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.models import llama, qwen

        from mlx_emotion.architectures import baichuan

        module: Any = {"qwen": qwen, "llama": llama, "baichuan": baichuan}[config["model_type"]]
        mx.random.seed(len(name))
        model = module.Model(module.ModelArgs.from_dict(config))
        weights = {k: v + 0.1 * mx.random.normal(v.shape) for k, v in tree_flatten(model.parameters())}
        mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})

    shared().run(work)


def convert(source: Path, folder: Path, **options: Any) -> Path:
    """Convert with mlx-lm's own converter; ``options`` are its. One that it can't load goes through ours."""
    from mlx_lm import convert as mlx_convert

    from mlx_emotion.architectures import convert as own_convert

    if json.loads((source / "config.json").read_text())["model_type"] in ("baichuan", "qwen"):
        shared().run(own_convert, source, folder, options["q_bits"], options["q_group_size"])
        return folder
    shared().run(lambda: mlx_convert(str(source), str(folder), **options))
    return folder


def write_adapter(model: Path, folder: Path) -> Path:
    """A LoRA adapter for ``model``, as mlx-lm's trainer leaves it, with weights that matter."""
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings))

    def work() -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.tuner.utils import linear_to_lora_layers
        from mlx_lm.utils import load_model

        loaded, _ = load_model(model)
        loaded.freeze()
        linear_to_lora_layers(loaded, settings["num_layers"], settings["lora_parameters"])
        mx.random.seed(3)
        weights = {k: 0.1 * mx.random.normal(v.shape) for k, v in tree_flatten(loaded.trainable_parameters())}
        mx.save_safetensors(str(folder / "adapters.safetensors"), weights)

    shared().run(work)
    return folder
