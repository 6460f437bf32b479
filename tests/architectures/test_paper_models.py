"""The paper's models load from their released layout, say what they should, and can be steered."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.engine import shared
from mlx_emotion.errors import ModelError
from mlx_emotion.extraction import Extraction, Plan
from mlx_emotion.models import load_model

QUERIES = {e: [f"What about {e}?", "And now?"] for e in ("anger", "joy")}


@pytest.fixture(scope="module")
def quantised(paper_model, tmp_path_factory):
    """``quantised(name)``: the folder of the model in 4 bits, as mlx-lm's converter makes it."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("quantised") / name
            made[name] = checkpoints.convert(paper_model(name), folder, quantize=True, q_bits=4, q_group_size=64)
        return made[name]

    return make


@pytest.mark.parametrize("form", ["released", "4-bit"])
@pytest.mark.parametrize("name", checkpoints.FAMILIES)
def test_steers(name, form, paper_model, quantised):
    """Vectors extracted from it change what it says; without a feeling it says the same as never tapped."""
    model = mlx_emotion.load(str((paper_model if form == "released" else quantised)(name)))
    assert (model.quantization == "4-bit") == (form == "4-bit")
    pack = mlx_emotion.extract(model, queries=QUERIES, max_tokens=6)
    model.use(pack)
    assert pack.info.model == model.identity
    assert all(np.abs(pack[e]).sum(axis=1).all() for e in QUERIES)
    quiet = model.generate("Hello.", temperature=0, max_tokens=8, seed=1).text
    loud = model.generate("Hello.", feeling="joy", scale=20, temperature=0, max_tokens=8, seed=1, guard=False).text
    assert loud != quiet
    model.run(lambda voice: voice.taps.remove())
    try:
        assert model.generate("Hello.", temperature=0, max_tokens=8, seed=1).text == quiet
    finally:
        model.close()


@pytest.mark.parametrize("name", checkpoints.FAMILIES)
def test_quantised_is_the_same_model(name, paper_model, quantised):
    """Its prompts and token ids are the released model's, and its logits are close."""
    import mlx.core as mx

    def read(folder):
        loaded = load_model(str(folder))
        text = loaded.template.render(MORE)
        ids = loaded.template.encode(text)
        logits = np.array(loaded.model(mx.array([ids])).astype(mx.float32))[0]
        return text, ids, sorted(loaded.tokenizer.eos_token_ids), logits - logits.mean(-1, keepdims=True)

    *told, exact = shared().run(read, paper_model(name))
    *told_quantised, rounded = shared().run(read, quantised(name))
    assert told == told_quantised
    similarity = (exact * rounded).sum() / np.linalg.norm(exact) / np.linalg.norm(rounded)
    assert similarity > 0.7  # random weights are rounded more roughly than trained ones; unlike models give about 0


def test_tokens_that_only_pad_the_vocabulary_are_said_as_nothing(quantised):
    loaded = shared().run(load_model, str(quantised("baichuan2-7b")))
    detokenizer = loaded.tokenizer.detokenizer
    assert len(loaded.tokenizer) < loaded.config["vocab_size"]
    word = loaded.template.encode("the cat")
    for token in (*word, loaded.config["vocab_size"] - 1, *word):
        detokenizer.add_token(token)
    detokenizer.finalize()
    assert detokenizer.text == "the catthe cat"


def test_convert_keeps_what_is_there(paper_model, tmp_path):
    from mlx_emotion.architectures import convert

    with pytest.raises(ModelError, match="is there already"):
        convert(paper_model("baichuan2-7b"), tmp_path)


PROMPTS = {
    "llama-3.1": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "llama-2-7b": "<s>[INST] Hi [/INST]",
    "qwen2.5": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "qwen2": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "qwen1.5": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "qwen": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "yi": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "minicpm3": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "baichuan2-7b": "<reserved_106>Hi<reserved_107>",
    "vicuna": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions. USER: Hi ASSISTANT:",
    "gemma": "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
}
SYSTEMS = {
    "llama-2-7b": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]",
    "qwen2.5": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "baichuan2-7b": "Be brief.<reserved_106>Hi<reserved_107>",
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT:",
    "gemma": "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
}
HISTORIES = {
    "vicuna": " USER: Hi ASSISTANT: Hello.</s>USER: And? ASSISTANT:",
    "baichuan2-7b": "<reserved_106>Hi<reserved_107>Hello.<reserved_106>And?<reserved_107>",
    "qwen": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<start_of_turn>model\nHello.<end_of_turn>\n"
    "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\n",
}
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
MORE = [USER, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And?"}]


@pytest.fixture(scope="module")
def template(paper_model):
    """``template(name)``: the chat template object of a model of the paper."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = shared().run(lambda: load_model(str(paper_model(name))).template)
        return made[name]

    return make


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt(template, name):
    """The neutral setting is the question in the model's own words, and nothing else."""
    assert template(name).render([USER]) == PROMPTS[name]


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_message(template, name):
    assert template(name).render([SYSTEM, USER]) == SYSTEMS[name]


@pytest.mark.parametrize("name", HISTORIES)
def test_history(template, name):
    assert template(name).render(MORE).endswith(HISTORIES[name])


def test_default_system_message_is_known(template):
    assert template("qwen2.5").default_system == checkpoints.QWEN_DEFAULT
    assert template("yi").default_system == ""
    assert template("gemma").system_role == "merged"


@pytest.mark.parametrize("name", ["qwen", "baichuan2-7b"])
def test_marks_are_single_tokens(template, name):
    made = template(name)
    ids = made.encode(PROMPTS[name])
    marks = {"qwen": ("<|im_start|>", "<|im_end|>"), "baichuan2-7b": ("<reserved_106>", "<reserved_107>")}[name]
    for mark in marks:
        (token,) = made.encode(mark)
        assert ids.count(token) == PROMPTS[name].count(mark)


TEXTS = ["the cat sat", "  two  spaces ", "a\nb\tc", "then 1234", "naïve café 😀", "你好，世界", "", " ", "THE rain."]


@pytest.mark.parametrize("text", TEXTS)
def test_baichuan_tokenizer_is_sentencepiece(paper_model, template, text):
    """The tokenizer made from ``tokenizer.model`` cuts text as sentencepiece itself does, and back."""
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(paper_model("baichuan2-7b") / "tokenizer.model"))
    ids = template("baichuan2-7b").encode(text)
    assert ids == reference.encode(text)
    assert template("baichuan2-7b").tokenizer.decode(ids) == text


def test_baichuan_head_is_normalised(paper_model):
    def work():
        import mlx.core as mx

        rows = load_model(str(paper_model("baichuan2-7b"))).model.lm_head.weight
        return np.array(mx.linalg.norm(rows, axis=-1))

    np.testing.assert_allclose(shared().run(work), 1, rtol=1e-5)


def test_baichuan_alibi_in_a_batch_is_as_alone(paper_model):
    """Distances to padded keys would show here: rows of different lengths, steered together and alone."""
    model = mlx_emotion.load(str(paper_model("baichuan2-13b")))

    def vectors(size):
        plan = Plan.make(queries={"joy": ["Hi", "What a long and winding question is this?"]}, max_tokens=6)
        return model.run(lambda voice: Extraction(voice, plan, size, restart=True).run()["joy"])

    np.testing.assert_allclose(vectors(4), vectors(1), rtol=1e-3, atol=1e-4)
    model.close()


def test_broken_vocabulary_files(paper_model, tmp_path):
    import shutil

    for name, file in (("qwen", "qwen.tiktoken"), ("baichuan2-7b", "tokenizer.model")):
        folder = shutil.copytree(paper_model(name), tmp_path / name)
        (folder / file).write_bytes(b"\xff\xfe nonsense")
        with pytest.raises(ModelError, match=f"{file}: not a "):
            shared().run(load_model, str(folder))
        (folder / file).unlink()
        with pytest.raises(ModelError, match=f"{file}: No such file"):
            shared().run(load_model, str(folder))
