"""Taps in a model's layers: read activations there and add vectors to them, per row of a batch.

A tapped module keeps its place and its name in the model; only its class is swapped for a subclass
that passes the output through the tap (`docs/decisions.md`, "Class swap"). What is added is decided
per forward pass by a ``SteeringCache``, one more entry at the end of mlx-lm's prompt cache list.
That entry travels with each sequence through mlx-lm's batching, so that every row of a batch has
its own feeling, and it counts tokens, so that it knows which positions are steered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .errors import ModelError, UsageError
from .layers import find_attention, find_layers

SITES = ("attention", "residual")
Span = tuple[int, int | None, Any]


class Dose:
    """What is added at each layer: ``deltas[l]`` is ``[1, 1, d]`` or ``None``; immutable."""

    __slots__ = ("deltas", "vector")

    def __init__(self, vector: np.ndarray, dtypes: Sequence[mx.Dtype | None]) -> None:
        """``vector`` is ``[L, d]`` float32; ``dtypes[l]`` the activation's dtype, ``None`` where there is no tap."""
        self.vector = vector
        # In the activation's own dtype: float32 would promote the whole residual stream.
        self.deltas: list[mx.array | None] = [
            None if dtype is None or not row.any() else mx.array(row).astype(dtype)[None, None]
            for row, dtype in zip(vector, dtypes)
        ]
        mx.eval([d for d in self.deltas if d is not None])


class TapState:
    """What the taps of one model do in the forward pass under way.

    Some models carry several residual streams stacked in one array (gemma3n ``[S, B, T, d]``,
    deepseek_v41 ``[B, T, S, d]``); what is read and added there is the first, the one that the layer's
    own attention starts from. ``streams`` is the axis of the stack.
    """

    __slots__ = ("captured", "deltas", "layers", "shape", "streams")

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.deltas: list[mx.array | None] | None = None
        self.captured: list[mx.array | None] | None = None
        self.shape: tuple[int, ...] = ()
        self.streams: int | None = None

    def __deepcopy__(self, memo: dict) -> TapState:
        # A copied model has taps of its own that do nothing.
        return TapState(self.layers)

    def apply(self, layer: int, output: mx.array) -> mx.array:
        if self.captured is None and self.deltas is None:
            return output
        if output.ndim == 4:
            if self.streams is None:  # found in the self-test, whose one row of three tokens is not to be mistaken
                self.streams = 2 if output.shape[:2] == self.shape else 0
            first, rest = mx.split(output, [1], axis=self.streams)
            first = self.apply(layer, first.squeeze(self.streams))
            return mx.concatenate([mx.expand_dims(first, self.streams), rest], axis=self.streams)
        if self.captured is not None:
            self.captured[layer] = output
        if self.deltas is not None:
            delta = self.deltas[layer]
            if delta is not None:
                return output + delta
        return output


_tapped_classes: dict[type, type] = {}
M = TypeVar("M", bound=nn.Module)


def _tapped(base: type) -> type:
    """The subclass of ``base`` whose calls go through the tap; one per base class."""
    if base not in _tapped_classes:

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = base.__call__(self, *args, **kwargs)  # type: ignore[operator]
            state, layer = self._tap
            if isinstance(output, tuple):  # some layers also return masks, positions or shared states
                return (state.apply(layer, output[0]), *output[1:])
            return state.apply(layer, output)

        _tapped_classes[base] = type(f"Tapped{base.__name__}", (base,), {"__call__": __call__, "_untapped": base})
    return _tapped_classes[base]


class Taps:
    """The taps of one model at one site; a context manager and a handle. ``remove`` restores the model exactly.

    ``site`` is ``attention`` (self-attention's output, before the residual add) or ``residual`` (the
    layer's output); ``layers`` are 0-based indices, all by default. ``dtypes`` and ``width`` are known
    after ``self_test``. Raises ``ModelError`` where the model has nothing to tap.
    """

    def __init__(self, model: nn.Module, site: str = "attention", layers: Iterable[int] | None = None) -> None:
        if site not in SITES:
            raise UsageError(f"unknown site {site!r}: known are {', '.join(SITES)}")
        self.model, self.site = model, site
        found = find_layers(model)
        self.count = len(found)
        chosen = range(self.count) if layers is None else sorted(set(layers))
        if any(not 0 <= i < self.count for i in chosen):
            raise UsageError(f"layers must be 0 to {self.count - 1}, this model has {self.count}")
        if not chosen:
            raise UsageError(f"no layers to steer were given, this model has 0 to {self.count - 1}")
        modules = [(i, find_attention(found[i]) if site == "attention" else found[i]) for i in chosen]
        self._modules = [(i, m) for i, m in modules if m is not None]
        if not self._modules:
            where = "" if layers is None else f" among layers {', '.join(map(str, chosen))}"
            raise ModelError(f"this model has no attention layers{where}; use --site residual")
        self.layers = tuple(i for i, _ in self._modules)
        self.state = TapState(self.count)
        self.dtypes: list[mx.Dtype | None] = [None] * self.count
        self.width = 0
        self.attached = self.closed = False

    def attach(self) -> Taps:
        if not self.attached:
            if any(hasattr(m, "_untapped") for _, m in self._modules):
                raise ModelError("this model is tapped already; remove those taps first")
            for index, module in self._modules:
                module.__class__ = _tapped(type(module))
                object.__setattr__(module, "_tap", (self.state, index))
            self.attached = True
        return self

    def remove(self) -> None:
        """Give every module its own class back. Harmless when done twice."""
        if self.attached:
            for _, module in self._modules:
                module.__class__ = type(module)._untapped  # type: ignore[attr-defined]
                object.__delattr__(module, "_tap")
            self.attached = False

    def __enter__(self) -> Taps:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.remove()

    def forward(
        self, tokens: mx.array, cache: list | None, deltas: list[mx.array | None] | None, capture: bool, **kwargs: Any
    ) -> tuple[mx.array, list[mx.array | None] | None]:
        """One pass of the model. Returns logits ``[B, T, V]`` and, if asked, outputs ``[B, T, d]`` by layer.

        Captured outputs are those before anything is added.
        """
        state = self.state
        state.deltas, state.captured, state.shape = deltas, [None] * self.count if capture else None, tokens.shape
        try:
            logits = self.model(tokens, cache=cache, **kwargs)
            return logits, state.captured
        finally:
            state.deltas = state.captured = None

    def dose(self, vector: np.ndarray) -> Dose:
        """A dose from ``vector`` ``[L, d]`` float32. Raises ``ModelError`` for another shape."""
        if vector.shape != (self.count, self.width):
            raise ModelError(f"the vectors have shape {vector.shape}, this model needs {(self.count, self.width)}")
        return Dose(vector, self.dtypes)

    def self_test(self) -> None:
        """Check that steering works here: nothing added changes nothing, something added changes the logits.

        Learns ``dtypes`` and ``width``. Leaves the taps attached. Raises ``ModelError``, never a silent no-op.
        """
        from mlx_lm.models.cache import make_prompt_cache

        tokens = mx.array([[1, 2, 3]])
        self.remove()
        plain = self.model(tokens, cache=make_prompt_cache(self.model))
        if mx.isnan(plain).any().item():
            raise ModelError("this model's logits are not numbers; its weights are damaged, or its dtype is too narrow")
        self.attach()
        same, captured = self.forward(tokens, make_prompt_cache(self.model), None, True)
        assert captured is not None
        silent = [i for i in self.layers if captured[i] is None]
        if silent:
            raise ModelError(
                f"site {self.site} of layers {silent} is never reached; this model cannot be steered there"
            )
        if not mx.array_equal(plain, same).item():
            raise ModelError(f"tapping site {self.site} changes this model's logits; it cannot be steered there")
        norms: list[float] = []
        for i in self.layers:
            output = captured[i]
            assert output is not None
            self.dtypes[i], self.width = output.dtype, output.shape[-1]
            norms.append(float(mx.linalg.norm(output.astype(mx.float32), axis=-1).mean()))
        direction = np.random.default_rng(0).standard_normal(self.width).astype(np.float32)
        direction /= np.linalg.norm(direction)
        vector = np.zeros((self.count, self.width), np.float32)
        for i, norm in zip(self.layers, norms):
            vector[i] = direction * max(norm, 1e-3)
        moved, _ = self.forward(tokens, make_prompt_cache(self.model), self.dose(vector).deltas, False)
        if mx.array_equal(plain, moved).item():
            raise ModelError(f"adding a vector at site {self.site} does not change this model's logits")
        if moved.dtype != plain.dtype:
            raise ModelError(f"adding a vector at site {self.site} changes the dtype {plain.dtype} to {moved.dtype}")


@dataclass
class Row:
    """The steering of one sequence: which positions get which dose. Shared by reference between caches.

    ``spans`` are (start, end, dose) over token positions of the sequence, in order and without overlap; ``end``
    ``None`` is open. ``offset`` is how many tokens the model has seen. In place of a dose there may be what ``make``
    makes one of: a history of many feelings need not keep the vectors of each.
    """

    spans: list[Span] = field(default_factory=list)
    offset: int = 0
    make: Callable[[Any], Dose | None] | None = None

    @classmethod
    def steered(cls, dose: Dose | None, start: int = 0) -> Row:
        """A row whose positions from ``start`` on get ``dose``."""
        return cls([(start, None, dose)])

    def set(self, dose: Any, start: int) -> None:
        """From position ``start`` on, ``dose``; what was planned before ``start`` stays."""
        spans = self.spans
        while spans and spans[-1][0] >= start:
            spans.pop()
        if spans and (spans[-1][1] is None or spans[-1][1] > start):
            spans[-1] = (spans[-1][0], start, spans[-1][2])
        spans.append((start, None, dose))

    def same_until(self, other: Row, limit: int) -> int:
        """The first position before ``limit`` at which ``other`` is steered otherwise, else ``limit``."""
        mine, others = self._runs(), other._runs()
        one, two = next(mine), next(others)
        while (start := max(one[0], two[0])) < limit:
            if not _alike(one[2], two[2]):
                return start
            end = min(one[1], two[1])
            if one[1] == end:
                one = next(mine, one)
            if two[1] == end:
                two = next(others, two)
            if end == math.inf:
                break
        return limit

    def _runs(self) -> Iterator[tuple[int, float, Any]]:
        """(start, end, what) over all positions, with ``None`` where nothing is added."""
        at = 0
        for start, end, what in self.spans:
            if start > at:
                yield at, start, None
            at = max(start, at)
            if end is None:
                yield at, math.inf, what
                return
            if end > at:
                yield at, end, what
                at = end
        yield at, math.inf, None

    def pieces(self, count: int) -> list[tuple[int, int, Dose]]:
        """(first, last + 1, dose) within the next ``count`` tokens, relative to the first of them."""
        if count == 1 and self.spans:  # decoding
            start, end, what = self.spans[-1]
            if end is None and start <= self.offset:
                dose = self._made(what)
                return [] if dose is None else [(0, 1, dose)]
        found = []
        for start, end, what in self.spans:
            low = max(start - self.offset, 0)
            high = count if end is None else min(end - self.offset, count)
            if low < high and (dose := self._made(what)) is not None:
                found.append((low, high, dose))
        return found

    def _made(self, what: Any) -> Dose | None:
        return what if self.make is None or what is None or isinstance(what, Dose) else self.make(what)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Dose) and isinstance(other, Dose):
        return one is other or np.array_equal(one.vector, other.vector)
    return one == other


class Sums:
    """Per-row sums of tapped activations over response tokens, kept while generating.

    ``totals`` is ``[B, L, d]`` float32, ``norms`` ``[B, L]`` and ``counts`` ``[B]``. A row's tokens count
    from its prompt's end on; ``ends`` are token ids that never count (end-of-turn marks). Where a row's
    tokens end with ``restart``, the mark that closes a reasoning block, it begins again from nothing.
    """

    def __init__(self, starts: list[int], ends: mx.array, restart: tuple[int, ...] = ()) -> None:
        self.starts, self.ends, self.restart = starts, ends, restart
        self.latest: mx.array = mx.full((len(starts), len(restart)), -1)
        self.totals: mx.array | None = None
        self.norms: mx.array | None = None
        self.counts: mx.array = mx.zeros((len(starts),))

    def _like(self, starts: list[int], pick: Callable[[mx.array], mx.array]) -> Sums:
        new = Sums(starts, self.ends, self.restart)
        new.counts, new.latest = pick(self.counts), pick(self.latest)
        if self.totals is not None and self.norms is not None:
            new.totals, new.norms = pick(self.totals), pick(self.norms)
        return new

    def take(self, rows: list[int]) -> Sums:
        index = mx.array(rows)
        return self._like([self.starts[i] for i in rows], lambda a: a[index])

    def join(self, other: Sums) -> Sums:
        if self.totals is None and other.totals is None:
            return Sums(self.starts + other.starts, self.ends, self.restart)
        like = self if self.totals is not None else other
        assert like.totals is not None

        def filled(s: Sums) -> list[mx.array]:
            if s.totals is not None and s.norms is not None:
                return [s.totals, s.norms, s.counts]
            shape = (len(s.starts), *like.totals.shape[1:])  # type: ignore[union-attr]
            return [mx.zeros(shape), mx.zeros(shape[:2]), s.counts]

        new = Sums(self.starts + other.starts, self.ends, self.restart)
        new.latest = mx.concatenate([self.latest, other.latest])
        new.totals, new.norms, new.counts = (mx.concatenate(list(p)) for p in zip(filled(self), filled(other)))
        return new

    def add(self, captured: list[mx.array], tokens: mx.array, offsets: list[int], valid: list[int]) -> None:
        """Take in one forward pass: ``captured`` are ``[B, T, d]`` a tapped layer, ``tokens`` ``[B, T]``."""
        count = tokens.shape[1]
        if all(o + v <= s for o, v, s in zip(offsets, valid, self.starts)):
            return
        inside = np.arange(count)[None] + np.array(offsets)[:, None] >= np.array(self.starts)[:, None]
        inside &= np.arange(count)[None] < np.array(valid)[:, None]
        mask = (tokens[..., None] != self.ends).all(-1)
        if not inside.all():
            mask = mask & mx.array(inside)
        weights = mask.astype(mx.float32)
        stack = mx.stack(captured, axis=1).astype(mx.float32)  # (B, L, T, d)
        totals = (stack * weights[:, None, :, None]).sum(2)
        norms = (mx.linalg.norm(stack, axis=-1) * weights[:, None]).sum(-1)
        self.totals = totals if self.totals is None else self.totals + totals
        self.norms = norms if self.norms is None else self.norms + norms
        self.counts = self.counts + weights.sum(-1)
        if self.restart:
            # Response tokens come one by one, so the mark's last token is the last of its pass.
            self.latest = mx.concatenate([self.latest, tokens.astype(self.latest.dtype)], 1)[:, -len(self.restart) :]
            kept = 1 - (self.latest == mx.array(self.restart)).all(-1).astype(mx.float32)
            self.totals, self.norms = self.totals * kept[:, None, None], self.norms * kept[:, None]
            self.counts = self.counts * kept
        # Nothing else would evaluate these, and the graph would grow with the reply.
        mx.async_eval(self.totals, self.norms, self.counts)


def _laid_out(pieces: list[tuple[int, int, mx.array]], count: int, like: mx.array) -> mx.array:
    """``[1, count, d]``: each of ``pieces`` (first, last + 1, ``[1, 1, d]``) in its place, zeros between."""
    width, laid, at = like.shape[-1], [], 0
    for low, high, delta in [*pieces, (count, count, like)]:
        if at < low:
            laid.append(mx.zeros((1, low - at, width), like.dtype))
        laid.append(mx.broadcast_to(delta, (1, high - low, width)))
        at = high
    return mx.concatenate(laid, axis=1)


class SteeringCache:
    """The extra entry at the end of a prompt cache list; speaks the batching protocol of mlx-lm's caches."""

    def __init__(self, rows: list[Row], sums: Sums | None = None) -> None:
        self.rows, self.sums = rows, sums
        self.observe: Callable[[list[mx.array | None]], None] | None = None
        """Called after each pass with the tapped outputs ``[B, T, d]`` by layer, before anything is added."""
        self._lengths: list[int] | None = None
        self._mixed: tuple[tuple[int, ...], list[Dose | None], list[mx.array | None]] | None = None

    def deltas(self, count: int, layers: int) -> list[mx.array | None] | None:
        """What the next pass of ``count`` tokens a row adds at each layer: broadcastable to ``[B, count, d]``."""
        pieces = [row.pieces(count) for row in self.rows]
        if not any(pieces):
            return None
        if all(not p or p[0][:2] == (0, count) for p in pieces):
            doses = [p[0][2] if p else None for p in pieces]
            if len(doses) == 1 and doses[0] is not None:
                return doses[0].deltas
            return self._whole_rows(doses, layers)
        out: list[mx.array | None] = []
        for layer in range(layers):
            rows = [
                [(low, high, delta) for low, high, dose in row if (delta := dose.deltas[layer]) is not None]
                for row in pieces
            ]
            like = next((delta for row in rows for _, _, delta in row), None)
            out.append(None if like is None else mx.concatenate([_laid_out(row, count, like) for row in rows]))
        return out

    def _whole_rows(self, doses: list[Dose | None], layers: int) -> list[mx.array | None]:
        key = tuple(id(d) for d in doses)
        if self._mixed is None or self._mixed[0] != key:  # the doses are kept too, so no id comes back as another
            out: list[mx.array | None] = []
            for layer in range(layers):
                parts = [None if d is None else d.deltas[layer] for d in doses]
                like = next((p for p in parts if p is not None), None)
                if like is None:
                    out.append(None)
                else:
                    out.append(mx.concatenate([mx.zeros_like(like) if p is None else p for p in parts]))
            mx.eval([o for o in out if o is not None])
            self._mixed = (key, doses, out)
        return self._mixed[2]

    def advance(self, tokens: mx.array, captured: list[mx.array | None] | None) -> None:
        """Take in a pass over ``tokens`` ``[B, T]`` that has been issued."""
        count = tokens.shape[1]
        valid = [count] * len(self.rows)
        if self._lengths is not None:
            valid = [max(0, min(count, n)) for n in self._lengths]
            self._lengths = [n - count for n in self._lengths]
        if captured is not None:
            if self.sums is not None:
                held = [c for c in captured if c is not None]
                self.sums.add(held, tokens, [r.offset for r in self.rows], valid)
            if self.observe is not None:
                self.observe(captured)
        for row, n in zip(self.rows, valid):
            row.offset += n

    # What mlx-lm asks of a cache entry.

    @property
    def state(self) -> list:
        return []

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def offset(self) -> int:
        return self.rows[0].offset

    def size(self) -> int:
        return max(r.offset for r in self.rows)

    def empty(self) -> bool:
        return all(r.offset == 0 for r in self.rows)

    def is_trimmable(self) -> bool:
        return True

    def trim(self, n: int) -> int:
        for row in self.rows:
            row.offset -= n
        return n

    @classmethod
    def merge(cls, entries: list[SteeringCache]) -> SteeringCache:
        merged = cls(list(entries[0].rows), entries[0].sums)
        for entry in entries[1:]:
            merged.extend(entry)
        return merged

    def extend(self, other: SteeringCache) -> None:
        self.rows = self.rows + other.rows
        if self.sums is not None and other.sums is not None:
            self.sums = self.sums.join(other.sums)

    def filter(self, rows: list[int]) -> None:
        self.rows = [self.rows[i] for i in rows]
        if self.sums is not None:
            self.sums = self.sums.take(rows)

    def extract(self, row: int) -> SteeringCache:
        return SteeringCache([self.rows[row]], None if self.sums is None else self.sums.take([row]))

    def prepare(self, lengths: list[int] | None = None, **_: Any) -> None:
        self._lengths = None if lengths is None else list(lengths)

    def finalize(self) -> None:
        self._lengths = None

    def __deepcopy__(self, memo: dict) -> SteeringCache:
        # mlx-lm copies a batch to split it; the rows stay the same rows.
        new = SteeringCache(list(self.rows), None)
        if self.sums is not None:
            new.sums = self.sums.take(list(range(len(self.rows))))
        return new


class SteerableModel:
    """What mlx-lm calls in the model's place: takes the ``SteeringCache`` off the cache list and obeys it.

    A call raises ``ModelError`` once the taps were closed, and where they are off and there is something to add
    or to read.
    """

    def __init__(self, taps: Taps) -> None:
        self.taps = taps

    @property
    def layers(self) -> list[nn.Module]:
        return self.taps.model.layers

    def make_cache(self) -> list[Any]:
        return self.cache(Row())

    def cache(self, row: Row, sums: Sums | None = None) -> list[Any]:
        """A fresh prompt cache for one sequence that is steered as ``row`` says."""
        from mlx_lm.models.cache import make_prompt_cache

        return [*make_prompt_cache(self.taps.model), SteeringCache([row], sums)]

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None, **kwargs: Any) -> mx.array:
        if self.taps.closed:
            raise ModelError("this model was closed; load it again")
        if not cache or not isinstance(cache[-1], SteeringCache):
            return self.taps.model(tokens, cache=cache, **kwargs)
        steering = cache[-1]
        deltas = steering.deltas(tokens.shape[1], self.taps.count)
        capture = steering.sums is not None or steering.observe is not None
        if not self.taps.attached and (capture or deltas is not None):
            raise ModelError("this model's taps were removed; nothing would be steered")
        logits, captured = self.taps.forward(tokens, cache[:-1], deltas, capture, **kwargs)
        steering.advance(tokens, captured)
        return logits
