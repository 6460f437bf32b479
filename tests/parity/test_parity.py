"""The same numbers as the reference: hooks written on the Hugging Face models, in float32, on the same tokens.

The hooks follow the authors' code for arXiv 2502.04075 (self-attention output, last position, every
layer) and the paper's Eq. 1 (layer output, every position). Bounds: relative error 1e-4, cosine 0.99999.
"""

from __future__ import annotations

import contextlib

import checkpoints
import numpy as np
import pytest

import mlx_emotion
from mlx_emotion.steering import Row, Sums

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # these models are too small to share

STEPS, SCALE = 32, 2
RELATIVE, COSINE = 1e-4, 0.99999
PROMPT = [5, 60, 33, 80, 41, 22, 90, 17, 55]
# (neutral prompt, neutral answer, emotional prompt, emotional answer), as token ids.
PAIRS = [
    ([7, 8, 9, 30, 31], [40, 41, 42, 43], [7, 8, 9, 30, 31, 70, 71, 72], [90, 91, 92, 93, 94, 95]),
    ([12, 13, 14], [50, 51, 60, 61, 62, 63, 64], [12, 13, 14, 75, 76], [97, 98, 99]),
    ([100, 101, 102, 103], [120, 121], [100, 101, 102, 103, 75, 76, 77], [130, 131, 132, 133, 134]),
]


class Reference:
    """A Hugging Face model with forward hooks."""

    def __init__(self, folder) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.layers = self.model.model.layers

    @contextlib.contextmanager
    def hooked(self, site, act):
        """``act(layer number, output tensor)`` may return another output."""

        def hook(number):
            def run(module, inputs, output):
                whole = isinstance(output, torch.Tensor)
                new = act(number, output if whole else output[0])
                if new is None:
                    return None
                return new if whole else (new, *output[1:])

            return run

        modules = [layer.self_attn if site == "attention" else layer for layer in self.layers]
        handles = [m.register_forward_hook(hook(i)) for i, m in enumerate(modules)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def means(self, site, prompt, answer):
        """Mean output over the answer's tokens, ``[L, d]``."""
        found = {}

        def read(number, output):
            found[number] = output[0, len(prompt) :].mean(0).numpy()

        with self.hooked(site, read):
            self.model(torch.tensor([prompt + answer]))
        return np.stack([found[i] for i in range(len(self.layers))])

    def vectors(self, site):
        shifts = [self.means(site, ep, ea) - self.means(site, np_, na) for np_, na, ep, ea in PAIRS]
        return np.mean(shifts, axis=0)

    @torch.no_grad()
    def steered(self, site, everywhere, vectors, scale):
        """(tokens, logits ``[STEPS, V]``) of a greedy, cached generation."""
        added = torch.tensor(vectors) * scale

        def add(number, output):
            output = output.clone()
            output[:, 0 if everywhere else -1 :, :] += added[number]
            return output

        ids, past, tokens, logits = torch.tensor([PROMPT]), None, [], []
        with self.hooked(site, add):
            for _ in range(STEPS):
                out = self.model(ids, past_key_values=past, use_cache=True)
                past = out.past_key_values
                logits.append(out.logits[0, -1].numpy())
                tokens.append(int(logits[-1].argmax()))
                ids = torch.tensor([[tokens[-1]]])
        return tokens, np.stack(logits)


def means(voice, prompt, answer):
    """Our per-layer means: the given answer, token by token, through the cache that sums."""
    import mlx.core as mx

    sums = Sums([len(prompt)], mx.array([-1]))
    cache = voice.model.cache(Row(), sums)
    for piece in (prompt[:-1], prompt[-1:], *([t] for t in answer)):
        voice.model(mx.array([piece]), cache=cache)
    sums = cache[-1].sums
    return np.array(sums.totals[0]) / sums.counts.item()


def steered(voice, everywhere, vectors, scale, tokens):
    """Our logits ``[STEPS, V]`` when the generation says ``tokens``."""
    import mlx.core as mx

    row = Row.steered(voice.taps.dose(vectors * np.float32(scale)), 0 if everywhere else len(PROMPT) - 1)
    cache = voice.model.cache(row)
    voice.model(mx.array([PROMPT[:-1]]), cache=cache)
    logits = [voice.model(mx.array([[t]]), cache=cache)[0, -1] for t in (PROMPT[-1], *tokens[:-1])]
    return np.stack([np.array(x) for x in logits])


def relative(ours, theirs):
    """The largest relative error over the rows."""
    return (np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1)).max()


@pytest.fixture(scope="module", params=checkpoints.WITH_TRANSFORMERS)
def folder(request, paper_model):
    return paper_model(request.param)


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="module", params=["attention", "residual"])
def model(request, folder):
    loaded = mlx_emotion.load(str(folder), site=request.param)
    yield loaded
    loaded.close()


def test_means(reference, model):
    for prompt, answer in ((p, a) for pair in PAIRS for p, a in (pair[:2], pair[2:])):
        theirs = reference.means(model.site, prompt, answer)
        assert relative(model.run(means, prompt, answer), theirs) <= RELATIVE


def test_vectors(reference, model):
    theirs = reference.vectors(model.site)
    ours = np.mean([model.run(means, ep, ea) - model.run(means, np_, na) for np_, na, ep, ea in PAIRS], axis=0)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() >= COSINE
    assert relative(ours, theirs) <= RELATIVE


def test_steered_generation(reference, model):
    everywhere = model.site == "residual"  # Eq. 1; else the authors' code
    vectors = reference.vectors(model.site).astype(np.float32)
    tokens, theirs = reference.steered(model.site, everywhere, vectors, SCALE)
    ours = model.run(steered, everywhere, vectors, SCALE, tokens)
    unsteered = model.run(steered, everywhere, vectors, 0, tokens)
    assert relative(ours, theirs) <= RELATIVE
    assert ours.argmax(-1).tolist() == tokens
    assert relative(unsteered, theirs) > 100 * RELATIVE, "steering does nothing here, so this compares nothing"
