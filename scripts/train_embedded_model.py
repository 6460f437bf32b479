"""Train the embedded model from the corpus and build the folder that ships.

One command from text to shipped folder::

    python scripts/train_embedded_model.py

It checks the corpus, trains a tokenizer and a Llama-architecture chat model, quantises it with
mlx-lm, makes and calibrates a pack for each site with the ordinary ``mlx-emotion`` commands, and
writes the model card. Killed at any moment, the same command goes on from the last checkpoint.
Training itself runs on PyTorch (extra ``train``): on a CPU it was four times faster than MLX
(``docs/decisions.md``); everything after it is MLX.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import functools
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import EMOTIONS, Dialogues, Topic, Turn, expand
from corpus import load as load_corpus
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "mlx_emotion" / "embedded"
PACKS = ROOT / "vectors" / "packs"

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FIRST_TOKENS, FIRST_WEIGHT = 8, 3.0  # an answer's beginning decides what it is about
LENGTH_STEP = 16
NOISE = 0.2  # most noise on an attention output, of its size
TOPIC_WEIGHT = 0.3
FELT_WEIGHT = 0.2
ROUNDED = 0.1  # last share of the steps, taken with the weights rounded as they will be
SPOILT = 0.25  # most of a reply's words replaced
RESIDUAL, RESIDUAL_STRENGTH = 0.35, 0.4  # share of pushes at layer outputs; there each layer's adds to those before
MEMORY = 0.995  # per step, of the running means
ENOUGH = 200  # tokens seen in each setting before pushes begin
OTHER_WEIGHT = 0.02  # loss weight of tokens that are not the companion's: they teach words, not answers


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--work", type=Path, default=ROOT / "build" / "embedded", help="checkpoints and logs")
    p.add_argument("--output", type=Path, default=SHIPPED, help="folder of the shipped model")
    p.add_argument("--topics", nargs="*", metavar="NAME", help="only these topics of the corpus")
    p.add_argument("--steps", type=int, default=54500)
    p.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    p.add_argument("--context", type=int, default=192, help="most tokens of a dialogue")
    p.add_argument("--width", type=int, default=192)
    p.add_argument("--layers", type=int, default=8)
    p.add_argument("--vocabulary", type=int, default=3072)
    p.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    p.add_argument("--dtype", default="float32", choices=("float16", "bfloat16", "float32"))
    p.add_argument("--bits", type=int, default=4)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--checkpoint-every", type=int, default=100, metavar="STEPS")
    p.add_argument("--start", type=Path, metavar="FOLDER", help="begin with the weights and tokens of this model")
    p.add_argument("--restart", action="store_true", help="forget earlier checkpoints")
    p.add_argument("--no-packs", action="store_true", help="stop after the model folder")
    return p.parse_args()


def check_machine(args: argparse.Namespace) -> None:
    """End with a line if the machine has too little disk or memory for the build."""
    args.work.mkdir(parents=True, exist_ok=True)
    parameters = args.vocabulary * args.width + args.layers * 16 * args.width**2
    disk, wanted = shutil.disk_usage(args.work).free, parameters * 40
    if disk < wanted:
        sys.exit(f"{args.work}: {disk >> 20} MiB of disk free, the build needs {wanted >> 20}")
    # Weights, gradients and two moments, the logits with their gradient, and the activations.
    wanted = 4 * (4 * parameters + args.tokens * (3 * args.vocabulary + 40 * args.layers * args.width))
    if sys.platform == "linux":
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if memory < wanted:
            sys.exit(f"{memory >> 20} MiB of memory free, training needs {wanted >> 20}; lower --tokens")


def make_tokenizer(topics: list[Topic], args: argparse.Namespace):
    """A byte-level BPE tokenizer trained on every reading of every line, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocabulary,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    dialogues = iter(Dialogues(topics, args.seed))
    sample = [turn.content for _ in range(20000) for turn in next(dialogues)]
    lines = [r for t in topics for section, ln in t.written if section != "held out" for r in expand(ln.text)]
    raw.train_from_iterator(sample + lines + ["system\n", "user\n", "assistant\n"] * 1000, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=IM_END, pad_token=PAD)
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = args.context
    return tokenizer


@dataclass
class Row:
    """A dialogue as token ids. Lists are as long as ``ids``; numbers are -1 where there is nothing to say.

    ``weights``: loss weights. ``about``: a reply's topic, at each of its tokens. ``asked``: the setting of a reply's
    tokens, 0 plain, then one of the emotions. ``pushes``: (start, stop, strength per emotion). ``felt``: per token,
    1 for each emotion that the reply shows, 0 for each other.
    """

    ids: list[int]
    weights: list[float]
    about: list[int]
    asked: list[int]
    pushes: list[tuple[int, int, list[float]]]
    felt: list[list[float]]


class Encoder:
    """Dialogues to rows of at most ``longest`` tokens."""

    def __init__(self, tokenizer, topics: list[Topic], longest: int) -> None:
        self.tokenizer, self.longest = tokenizer, longest
        self.numbers = {t.name: n for n, t in enumerate(topics)}
        self.newline = self.ids("\n")
        self.start, self.end, self.pad = tokenizer.convert_tokens_to_ids([IM_START, IM_END, PAD])
        self.roles = {r: [self.start, *self.ids(f"{r}\n")] for r in ("system", "user", "assistant")}

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def __call__(self, dialogue: list[Turn]) -> Row:
        ids: list[int] = []
        weights: list[float] = []
        about: list[int] = []
        asked: list[int] = []
        pushes: list[tuple[int, int, list[float]]] = []
        felt: list[list[float]] = []
        unknown = [-1.0] * len(EMOTIONS)
        for turn in dialogue:
            given = self.ids(turn.content[: turn.given])
            head, body = self.roles[turn.role] + given, [*self.ids(turn.content[turn.given :]), self.end]
            own = turn.role == "assistant"
            ids += head + body + self.newline
            kept = [OTHER_WEIGHT] * len(body)
            if own:
                first = min(FIRST_TOKENS, len(body))
                kept = [FIRST_WEIGHT] * first + [1.0] * (len(body) - first)
            weights += [0.0] * len(head) + kept + [0.0] * len(self.newline)
            about += [-1] * (len(ids) - len(about))
            asked += [-1] * (len(ids) - len(asked))
            felt += [unknown] * (len(ids) - len(felt))
            start = len(ids) - len(self.newline) - len(body) - 1  # the last token before the reply
            if turn.topic:
                about[start : start + len(body)] = [self.numbers[turn.topic]] * len(body)
            if turn.asked:
                number = ("plain", *EMOTIONS).index(turn.asked)
                asked[start + 1 : start + len(body)] = [number] * (len(body) - 1)
            if turn.felt is not None:
                shown = [float(e in turn.felt) for e in EMOTIONS]
                felt[start : start + len(body)] = [shown] * len(body)
            if turn.push:
                strengths = dict(turn.push)
                pushes.append((start, start + len(body), [strengths.get(e, 0.0) for e in EMOTIONS]))
        n = self.longest
        return Row(ids[:n], weights[:n], about[:n], asked[:n], pushes, felt[:n])


def padded(lists: list[list], length: int, filler: Any) -> np.ndarray:
    return np.array([x + [filler] * (length - len(x)) for x in lists])


def batches(topics: list[Topic], encoder: Encoder, args: argparse.Namespace, step: int) -> Iterator[tuple]:
    """Batches of (ids, weights, about, asked, felt, pushes) from ``step`` on, each about ``--tokens`` large.

    ``pushes`` are ``[2 sites, rows, tokens, emotions]``: a row is pushed at one site, all along.

    A row is one dialogue from its first token, as in use: laid end to end in long rows, the model
    learned to say answers but not to which question. Dialogues of like length go together, so that
    little is padding. Each block of steps has its own seed: a resumed run sees the same text.
    """
    block = args.checkpoint_every
    while True:
        dialogues = iter(Dialogues(topics, args.seed * 1_000_003 + step // block))
        order = random.Random(step)
        ready: list[list[Row]] = []
        for _ in range(block):
            if not ready:
                shelves: dict[int, list[Row]] = {}
                while len(ready) < 16:
                    row = encoder(next(dialogues))
                    # Lengths in steps, so that the few shapes there are can reuse their memory.
                    length = -(-len(row.ids) // LENGTH_STEP) * LENGTH_STEP
                    shelf = shelves.setdefault(length, [])
                    shelf.append(row)
                    if len(shelf) * length >= args.tokens:
                        ready.append(shelves.pop(length))
                order.shuffle(ready)
            chunk = ready.pop()
            longest = -(-max(len(row.ids) for row in chunk) // LENGTH_STEP) * LENGTH_STEP
            pushes = np.zeros((2, len(chunk), longest, len(EMOTIONS)), np.float32)
            for n, row in enumerate(chunk):
                site = int(order.random() < RESIDUAL)
                for start, stop, strengths in row.pushes:
                    pushes[site, n, start:stop] = np.array(strengths) * (RESIDUAL_STRENGTH if site else 1.0)

            yield (
                padded([row.ids for row in chunk], longest, encoder.pad),
                padded([row.weights for row in chunk], longest, 0.0).astype(np.float32),
                padded([row.about for row in chunk], longest, -1),
                padded([row.asked for row in chunk], longest, -1),
                padded([row.felt for row in chunk], longest, [-1.0] * len(EMOTIONS)).astype(np.float32),
                pushes,
            )
        step += block


def spoilt(ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``ids`` with words of other replies among those of half of the replies, as inputs only.

    A reply known by heart can be gone on with from its last few words alone, whatever the question was: then one
    odd word in sampling leads into another topic's answer. With words that can't be trusted, the question counts.
    """
    own = weights >= 1
    rate = torch.rand(len(ids), 1, device=ids.device) * SPOILT * (torch.rand(len(ids), 1, device=ids.device) < 0.5)
    words = ids[own]
    other = words[torch.randint(len(words), ids.shape, device=ids.device)]
    return torch.where(own & (torch.rand(ids.shape, device=ids.device) < rate), other, ids)


class Heads(torch.nn.Module):
    """What the middle layer is to tell at each token of a reply, in training only: its topic and its feeling.

    Which words say what a message is about is the hard part of answering a new wording, and a feeling that
    stands out half-way up, in a direction of its own, is one that a vector can give.
    """

    def __init__(self, width: int, topics: int) -> None:
        super().__init__()
        self.topic = torch.nn.Linear(width, topics)
        self.felt = torch.nn.Linear(width, len(EMOTIONS))

    def forward(self, middle, about, felt):
        """The two losses, of ``middle`` ``[B, T, d]``."""
        middle = F.rms_norm(middle.float(), (middle.shape[-1],))
        told, known = about >= 0, felt[..., 0] >= 0
        topic_loss = F.cross_entropy(self.topic(middle[told]), about[told])
        return topic_loss, F.binary_cross_entropy_with_logits(self.felt(middle[known]), felt[known])


def loss_of(model, ids, weights):
    """Weighted loss per token."""
    return _weighted(model, model.model(input_ids=ids[:, :-1]).last_hidden_state, ids, weights)


def _weighted(model, hidden, ids, weights):
    """Loss from the last layer's ``hidden``; logits, a large part of a small model's work, only where they count."""
    weights = weights[:, 1:]
    counted = weights > 0
    losses = F.cross_entropy(model.lm_head(hidden[counted]).float(), ids[:, 1:][counted], reduction="none")
    return (losses * weights[counted]).sum() / weights.sum()


def training_loss(model, heads, ids, weights, about, felt):
    """The loss to follow, and those of the two heads as numbers."""
    out = model.model(input_ids=spoilt(ids, weights)[:, :-1], output_hidden_states=True)
    middle = out.hidden_states[len(model.model.layers) // 2]
    with torch.autocast(ids.device.type, enabled=False):
        topic_loss, felt_loss = heads(middle, about[:, :-1], felt[:, :-1])
    loss = _weighted(model, out.last_hidden_state, ids, weights)
    return loss + TOPIC_WEIGHT * topic_loss + FELT_WEIGHT * felt_loss, topic_loss.item(), felt_loss.item()


class Shifts:
    """What steering will do to the model, done in training.

    Keeps running means of what attention and layers put out in each setting; the difference of an emotion's
    to the plain one is its vector as ``extract`` will find it (method ``mean``). Rows with ``pushes`` get these
    vectors added where an instruction would have asked. A random direction on half of the rows, one for a
    whole row, stands for everything else that steering does.
    """

    def __init__(self, model: LlamaForCausalLM, device: str) -> None:
        layers, settings = len(model.model.layers), 1 + len(EMOTIONS)
        self.sums = torch.zeros(2, settings, layers, model.config.hidden_size, device=device)
        self.counts = torch.zeros(settings, device=device)
        for n, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_hook(functools.partial(self._pass, 0, n))
            layer.register_forward_hook(functools.partial(self._pass, 1, n))

    @property
    def state(self) -> dict[str, torch.Tensor]:
        return {"sums": self.sums, "counts": self.counts}

    @state.setter
    def state(self, saved: dict[str, torch.Tensor]) -> None:
        self.sums, self.counts = saved["sums"], saved["counts"]

    @property
    def ready(self) -> bool:
        return bool(self.counts.min() > ENOUGH)

    def begin(self, asked: torch.Tensor, pushes: torch.Tensor) -> None:
        """Before the pass of a batch: ``asked`` ``[B, T]`` and ``pushes`` ``[2, B, T, emotions]``."""
        means = self.sums / self.counts.clamp(min=1)[:, None, None]
        self.vectors = means[:, 1:] - means[:, :1]
        self.sums *= MEMORY
        self.counts *= MEMORY
        self.members = F.one_hot(asked.flatten() + 1, len(self.counts) + 1)[:, 1:].float()
        self.counts += self.members.sum(0)
        self.pushes = pushes

    def _pass(self, site: int, n: int, module, inputs, output):
        if not module.training:
            return output
        out = output[0] if isinstance(output, tuple) else output
        pure = out.detach().float()
        with torch.autocast(out.device.type, enabled=False):
            self.sums[site, :, n] += self.members.T @ pure.flatten(0, 1)
            added = self.pushes[site] @ self.vectors[site, :, n]
            if site == 0:
                size = pure.pow(2).mean(-1, keepdim=True).sqrt()
                strength = torch.rand(len(out), 1, 1, device=out.device) * NOISE
                strength = strength * (torch.rand(len(out), 1, 1, device=out.device) < 0.5)
                added = added + torch.randn(len(out), 1, out.shape[-1], device=out.device) * strength * size
        out = out + added.to(out.dtype)
        return (out, *output[1:]) if isinstance(output, tuple) else out


class Rounded:
    """Within it, ``model`` has the weights that it will have when it ships; after it, its own ones again.

    The gradient found at rounded weights is then followed by the whole ones: in the last part of the training
    the model learns to be as good in ``bits`` bits. Rounding is that of ``mlx.core.quantize``, groups of 64.
    """

    def __init__(self, model: LlamaForCausalLM, bits: int) -> None:
        self.weights = [p for p in model.parameters() if p.ndim == 2]
        self.most = 2**bits - 1

    @torch.no_grad()
    def __enter__(self) -> None:
        self.kept = [p.clone() for p in self.weights]
        for p in self.weights:
            groups = p.view(-1, 64)
            low, high = groups.aminmax(dim=1, keepdim=True)
            edge = torch.where(low.abs() > high.abs(), low, high)  # the end that must be exact, as zero must
            scale = ((high - low) / self.most).clamp(min=1e-7)
            scale = torch.where(low.abs() > high.abs(), scale, -scale)
            steps = (edge / scale).round()
            scale = torch.where(steps == 0, scale, edge / steps)
            bias = torch.where(steps == 0, torch.zeros_like(edge), edge)
            groups.sub_(bias).div_(scale).round_().clamp_(0, self.most).mul_(scale).add_(bias)

    @torch.no_grad()
    def __exit__(self, *_) -> None:
        for p, kept in zip(self.weights, self.kept, strict=True):
            p.copy_(kept)


@torch.no_grad()
def held_out_loss(model, topics: list[Topic], encoder: Encoder, device: str) -> dict[str, float]:
    """Mean loss per answer token after held-out questions, without and with an instruction.

    ``first`` is that of a plain answer's first five tokens: where the topic is found, or not.
    """
    out = {}
    first = 0.0
    model.eval()
    for name, feelings in (("plain", ("plain",)), ("emotional", EMOTIONS)):
        total = count = 0.0
        dialogues = Dialogues(topics, 7)
        for n, topic in enumerate(topics):
            feeling = feelings[n % len(feelings)]
            question = topic.sections["held out"][n % 2].text
            if feeling != "plain":
                question = f"{dialogues.instruction('emotional', feeling)}\n\n{question}"
            answer = expand(topic.sections[feeling][0].text)[0]
            row = encoder([Turn("user", question), Turn("assistant", answer)])
            ids, weights = row.ids, row.weights
            i = torch.tensor([ids], device=device)
            w = torch.tensor([[float(x >= 1) for x in weights]], device=device)
            total += loss_of(model, i, w).item() * w[:, 1:].sum().item()
            count += w[:, 1:].sum().item()
            if feeling == "plain":
                w[:, w[0].nonzero()[5].item() :] = 0
                first += loss_of(model, i, w).item() / len(topics)
        out[name] = total / count
    model.train()
    out["first"] = first
    return out


def optimizers_of(model: LlamaForCausalLM, heads: Heads, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, which it teaches rare lines in fewer steps; AdamW for the rest."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True),
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model folder in mlx-lm's layout, unpacked to float32."""
    import mlx.core as mx

    packed = mx.load(str(folder / "model.safetensors"))
    quantisation = json.loads((folder / "config.json").read_text())["quantization"]
    how = {k: quantisation[k] for k in ("group_size", "bits")}
    found = {}
    for name, array in packed.items():
        stem, _, last = name.rpartition(".")
        if last in ("scales", "biases"):
            continue
        if f"{stem}.scales" in packed:
            array = mx.dequantize(array, packed[f"{stem}.scales"], packed[f"{stem}.biases"], **how)
        found[name] = torch.from_numpy(np.array(array.astype(mx.float32)))
    return found


def train(topics: list[Topic], tokenizer, args: argparse.Namespace) -> LlamaForCausalLM:
    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=args.width,
            num_hidden_layers=args.layers,
            intermediate_size=4 * args.width,
            num_attention_heads=args.width // 64,
            num_key_value_heads=args.width // 64,
            rms_norm_eps=1e-5,
            vocab_size=len(tokenizer),
            max_position_embeddings=args.context,
            rope_theta=10000.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            attn_implementation="eager",  # on rows this short the fused kernels' backward pass is slower
        )
    ).to(device)
    shifts = Shifts(model, device)
    warmup = min(200, args.steps // 10)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - warmup) / (args.steps - warmup))) / 2

    heads = Heads(args.width, len(topics)).to(device)
    if args.start:
        model.load_state_dict(weights_of(args.start), strict=False)
    optimizers = optimizers_of(model, heads, args.rate)
    all_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    checkpoint, log_path = args.work / "checkpoint.pt", args.work / "log.jsonl"
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        first = saved["step"]
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        shifts.state = saved["shifts"]
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        print(f"going on from step {first}", file=sys.stderr)
    encoder = Encoder(tokenizer, topics, args.context)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    losses: list[float] = []
    head_losses: list[tuple[float, float]] = []
    seen = 0
    with Progress(*(TextColumn(c) if isinstance(c, str) else c for c in columns)) as progress:
        task = progress.add_task("training", total=args.steps, completed=first)
        began = time.perf_counter()
        feed = batches(topics, encoder, args, first)
        behind = concurrent.futures.ThreadPoolExecutor(1)
        coming = behind.submit(next, feed)
        for step in range(first, args.steps):
            ids, weights, about, asked, felt, pushes = (torch.from_numpy(a).to(device) for a in coming.result())
            coming = behind.submit(next, feed)
            if not shifts.ready:  # nothing yet to push with: these rows wait
                weights = weights * (pushes.abs().sum((0, 2, 3)) == 0)[:, None]
            shifts.begin(asked[:, :-1], pushes[:, :, :-1])
            for group in all_groups:
                group["lr"] = args.rate * rate(step)
            late = step >= args.steps * (1 - ROUNDED)
            with Rounded(model, args.bits) if late else contextlib.nullcontext():
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss, *others = training_loss(model, heads, ids, weights, about, felt)
                loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in all_groups for p in g["params"]], 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            head_losses.append(tuple(others))
            seen += ids.numel()
            if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
                saved = {
                    "step": step + 1,
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "shifts": shifts.state,
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                }
                torch.save(saved, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
                with Rounded(model, args.bits) if late else contextlib.nullcontext():
                    held_out = held_out_loss(model, topics, encoder, device)
                entry = {
                    "step": step + 1,
                    "loss": round(sum(losses) / len(losses), 4),
                    "topic_loss": round(sum(t for t, _ in head_losses) / len(head_losses), 4),
                    "felt_loss": round(sum(f for _, f in head_losses) / len(head_losses), 4),
                    **{f"held_out_{k}": round(v, 4) for k, v in held_out.items()},
                    "tokens_per_second": round(seen / (time.perf_counter() - began)),
                }
                with log_path.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
                progress.console.print(json.dumps(entry), highlight=False, soft_wrap=True)
                losses, head_losses, seen, began = [], [], 0, time.perf_counter()
            progress.update(task, completed=step + 1, description=f"training, loss {loss.item():.3f}")
    return model


def save_folder(model: LlamaForCausalLM, tokenizer, topics: list[Topic], args: argparse.Namespace) -> None:
    """Write the float model in Hugging Face layout, then quantise it with mlx-lm into the shipped folder."""
    from mlx_lm import convert

    full, quantised = args.work / "float", args.work / "quantised"
    for folder in (full, quantised):
        shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(full)
    tokenizer.save_pretrained(full)
    convert(str(full), str(quantised), quantize=True, q_bits=args.bits, q_group_size=64, dtype=args.dtype)
    last = json.loads((args.work / "log.jsonl").read_text().splitlines()[-1])
    before = json.loads((args.start / "training.json").read_text())["tokens"] if args.start else 0
    record = {
        "topics": [t.name for t in topics],
        "seed": args.seed,
        "tokens": before + last["step"] * args.tokens,
        **last,
    }
    (quantised / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(args.output, ignore_errors=True)
    shutil.copytree(quantised, args.output, ignore=shutil.ignore_patterns("README.md", ".gitattributes"))
    (args.output / "README.md").write_text(card(model, topics, record, args), encoding="utf-8")


def card(model: LlamaForCausalLM, topics: list[Topic], record: dict, args: argparse.Namespace) -> str:
    """The model card: ``card.md`` with its numbers filled in."""
    sections = [(section, ln.text) for t in topics for section, ln in t.written]
    config = model.config
    return (
        (Path(__file__).parent / "card.md")
        .read_text(encoding="utf-8")
        .format(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            feed=config.intermediate_size,
            parameters=f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
            vocabulary=f"{config.vocab_size:,}",
            context=config.max_position_embeddings,
            bits=args.bits,
            topics=len(topics),
            lines=f"{len(sections):,}",
            questions=f"{sum(s == 'questions' for s, _ in sections):,}",
            answers=f"{sum(s not in ('questions', 'held out') for s, _ in sections):,}",
            words=f"{sum(len(expand(text)[0].split()) for _, text in sections):,}",
            readings=f"{sum(len(expand(text)) for _, text in sections):,}",
            millions=round(record["tokens"] / 1e6),
            seed=record["seed"],
            plain=f"{record['held_out_plain']:.2f}",
            emotional=f"{record['held_out_emotional']:.2f}",
        )
    )


def make_packs(args: argparse.Namespace) -> None:
    """Make and calibrate the packs of both sites, and measure, all with the ordinary commands."""
    PACKS.mkdir(parents=True, exist_ok=True)
    for site in ("attention", "residual"):
        pack = PACKS / f"embedded-{site}.safetensors"
        made = ["extract", "--model", str(args.output), "--site", site, "--batch-size", "32", "--max-tokens", "60"]
        subprocess.run([sys.executable, "-m", "mlx_emotion", *made, "--output", str(pack)], check=True)
    report = ROOT / "docs" / "results" / "embedded.json"
    measure = [str(Path(__file__).parent / "evaluate_embedded_model.py"), "--json", str(report)]
    subprocess.run([sys.executable, *measure], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    args = arguments()
    check_machine(args)
    try:
        topics = load_corpus()
    except ValueError as error:
        sys.exit(str(error))
    if args.topics:
        if unknown := set(args.topics) - {t.name for t in topics}:
            sys.exit(f"no topic {', '.join(sorted(unknown))} in the corpus")
        topics = [t for t in topics if t.name in args.topics]
    if args.restart:
        shutil.rmtree(args.work, ignore_errors=True)
        args.work.mkdir(parents=True)
    if (args.work / "tokenizer").exists():  # a resumed run must keep its token ids
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer")
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start) if args.start else make_tokenizer(topics, args)
        tokenizer.save_pretrained(args.work / "tokenizer")
    model = train(topics, tokenizer, args)
    save_folder(model, tokenizer, topics, args)
    if not args.no_packs:
        make_packs(args)


if __name__ == "__main__":
    main()
