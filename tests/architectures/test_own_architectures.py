"""What this project adds to mlx-lm: Baichuan, Gemma's activation, and tokenizers without remote code."""

from __future__ import annotations

import base64
import itertools

import checkpoints
import numpy as np
import pytest

from mlx_emotion.architectures import find_classes
from mlx_emotion.architectures.baichuan import alibi_slopes
from mlx_emotion.engine import shared
from mlx_emotion.models import load_model, sizes

TOKENS = [[5, 60, 33, 80, 41, 22, 90, 17]]


def logits_of(folder):
    def work():
        import mlx.core as mx

        return np.array(load_model(str(folder)).model(mx.array(TOKENS)))

    return shared().run(work)


def weights_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def unit(head):
    return head / np.linalg.norm(head, axis=1, keepdims=True)


def test_baichuan_7b_is_llama_with_its_projections_apart(paper_model):
    folder = paper_model("baichuan2-7b")

    def work():
        import mlx.core as mx
        from mlx_lm.models import llama

        weights = weights_of(folder)
        for name in [n for n in weights if "W_pack" in n]:
            for part, value in zip("qkv", np.split(weights.pop(name), 3)):
                weights[name.replace("W_pack", f"{part}_proj")] = value
        weights["lm_head.weight"] = unit(weights["lm_head.weight"])
        config = {**checkpoints.FAMILIES["baichuan2-7b"].config, "model_type": "llama"}
        model = llama.Model(llama.ModelArgs.from_dict(config))
        model.load_weights([(k, mx.array(v)) for k, v in weights.items()])
        return np.array(model(mx.array(TOKENS)))

    np.testing.assert_allclose(logits_of(folder), shared().run(work), rtol=1e-4, atol=1e-5)


def test_baichuan_13b_against_plain_numpy(paper_model):
    """ALiBi as its paper has it: a head's slope times the key's place, whatever the constant (softmax drops it)."""
    folder, config = paper_model("baichuan2-13b"), checkpoints.FAMILIES["baichuan2-13b"].config
    weights, heads, count = weights_of(folder), config["num_attention_heads"], len(TOKENS[0])

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config["rms_norm_eps"]) * weights[name]

    def silu(x):
        return x / (1 + np.exp(-x))

    x = weights["model.embed_tokens.weight"][TOKENS[0]]
    bias = np.array(alibi_slopes(heads))[:, None, None] * np.arange(count)
    bias = np.where(np.tril(np.ones((count, count), bool)), bias, -np.inf)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        packed = norm(x, at + "input_layernorm.weight") @ weights[at + "self_attn.W_pack.weight"].T
        q, k, v = (p.reshape(count, heads, -1).swapaxes(0, 1) for p in np.split(packed, 3, axis=-1))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + bias
        share = np.exp(scores - scores.max(-1, keepdims=True))
        out = (share / share.sum(-1, keepdims=True)) @ v
        x = x + out.swapaxes(0, 1).reshape(count, -1) @ weights[at + "self_attn.o_proj.weight"].T
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (h @ weights[f"{at}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (silu(gate) * up) @ weights[at + "mlp.down_proj.weight"].T
    wanted = norm(x, "model.norm.weight") @ unit(weights["lm_head.weight"]).T
    np.testing.assert_allclose(logits_of(folder)[0], wanted, rtol=1e-3, atol=1e-4)


def test_alibi_slopes():
    """Of eight heads, halves from 1/2; of twelve, the eight and every other one of sixteen (arXiv 2108.12409)."""
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12) == alibi_slopes(8) + alibi_slopes(16)[:8:2]


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 3, "hidden_size": 64},
        {"n_layer": 3, "n_embd": 64},  # gpt2
        {"n_layers": 3, "d_model": 64},  # dbrx
        {"num_transformer_layers": 3, "model_dim": 64},  # openelm
        {"num_layers": 3, "hidden_dim": 64},  # afm7
        {"hidden_size": 1, "text_config": {"num_hidden_layers": 3, "hidden_size": 64}},  # gemma3
    ],
)
def test_sizes_by_any_name(config):
    assert sizes(config) == (3, 64)


@pytest.mark.parametrize(("width", "alibi"), [(4096, False), (5120, True)])
def test_13b_is_known_by_its_width(width, alibi):
    _, arguments = find_classes({"model_type": "baichuan"})
    config = {**checkpoints.FAMILIES["baichuan2-7b"].config, "hidden_size": width}
    assert arguments.from_dict(config).alibi == alibi


def test_quantised_baichuan_head_is_left_as_it_was_saved(paper_model, tmp_path):
    def work():
        import mlx.core as mx
        from mlx_lm.utils import quantize_model, save_config, save_model

        loaded = load_model(str(paper_model("baichuan2-7b")))
        model, config = quantize_model(loaded.model, loaded.config, 32, 8)
        before = np.array(model(mx.array(TOKENS)))
        save_model(tmp_path, model)
        save_config(config, tmp_path / "config.json")
        return before

    before = shared().run(work)
    source = paper_model("baichuan2-7b")
    (tmp_path / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    np.testing.assert_array_equal(logits_of(tmp_path), before)


def byte_pairs(word, ranks):
    """Byte-pair encoding by its definition: join the neighbours of lowest rank until none are left."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while True:
        pairs = [(ranks.get(a + b, np.inf), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
        rank, i = min(pairs, default=(np.inf, 0))
        if rank == np.inf:
            return [ranks[p] for p in parts]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


@pytest.mark.parametrize("text", ["the cat, then the  end", "they'll 1234\n\n  ok", "naïve 你好 😀", "a the THE"])
def test_qwen_tokenizer_is_byte_pairs_of_words(paper_model, text):
    import regex

    from mlx_emotion.architectures.qwen import PATTERN

    folder = paper_model("qwen")
    lines = (folder / "qwen.tiktoken").read_bytes().split()
    ranks = {base64.b64decode(t): int(r) for t, r in zip(lines[::2], lines[1::2])}
    wanted = [i for word in regex.findall(PATTERN, text) for i in byte_pairs(word.encode(), ranks)]
    tokenizer = shared().run(lambda: load_model(str(folder))).tokenizer
    assert tokenizer.encode(text, add_special_tokens=False) == wanted
    assert tokenizer.decode(wanted) == text
