"""Find and load a chat model; its fingerprint; what its chat template can and cannot do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelError, UsageError
from .files import MAX_TEXT, check_size, config_file, user_path
from .files import load_config as load_settings
from .templates import ChatTemplate
from .vectors import Identity

if TYPE_CHECKING:
    import mlx.nn as nn
    from huggingface_hub.utils import tqdm
    from mlx_lm.tokenizer_utils import TokenizerWrapper

EMBEDDED = "embedded"
"""The name of the model that comes with the package."""

# What configs call the number of layers, the most tokens they were made for, and the width of the residual stream.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers")
CONTEXTS = (
    "max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length",
    "model_max_length", "max_context_length",
)  # fmt: skip
WIDTHS = ("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim")

UNPACKED_MOST = 64 << 20
"""Bytes that a small model's weights may take unpacked."""

# What mlx-lm fetches; a snapshot with these is complete for it.
PATTERNS = [
    "*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "tiktoken.model",
    "*.txt", "*.jsonl", "*.jinja",
]  # fmt: skip


@dataclass
class LoadedModel:
    """A model ready on the thread that owns MLX. ``config`` is mlx-lm's; ``path`` the local folder."""

    model: nn.Module
    tokenizer: TokenizerWrapper
    config: dict[str, Any]
    path: Path
    identity: Identity
    template: ChatTemplate
    adapter: str | None = None

    @property
    def context(self) -> int | None:
        """The most tokens the model was made for, where its config says so."""
        for config in (self.config, self.config.get("text_config") or {}):
            for name in CONTEXTS:
                value = config.get(name)
                if isinstance(value, int) and value > 0:
                    return value
        return None

    @property
    def quantization(self) -> str:
        """Such as ``4-bit``, or the dtype of a model that is not quantised."""
        return quantization(self.config)


def quantization(config: dict[str, Any]) -> str:
    q = config.get("quantization") or config.get("quantization_config") or {}
    if isinstance(q, dict) and q.get("bits"):
        mode = q.get("mode", "affine")
        mixed = " mixed" if any(isinstance(v, dict) and v.get("bits") != q["bits"] for v in q.values()) else ""
        return f"{q['bits']}-bit{mixed}" if mode == "affine" else f"{mode}{mixed}"
    return str(config.get("torch_dtype") or config.get("dtype") or "unquantised")


def embedded_path() -> Path:
    return Path(__file__).parent / "embedded"


def default_model() -> str:
    """The configured default model, else the embedded one. Raises ``UsageError`` for one that is no name."""
    name = load_settings().get("model", EMBEDDED)
    if not isinstance(name, str) or not name:
        raise UsageError(f"{config_file()}: model is {name!r}, wanted a folder or a Hugging Face id")
    return name


def resolve(
    name: str | None = None,
    revision: str | None = None,
    local: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[str, str, Path]:
    """(id, revision, local folder) of a model named by folder or Hugging Face id; downloads it unless ``local``.

    ``None`` is the default model. ``progress`` is told (bytes that are here, bytes in all) during a download, on
    its threads; without one, the hub's own bars are painted. Raises ``ModelError``.
    """
    name = name or default_model()
    if name == EMBEDDED:
        path = embedded_path()
        if not (path / "config.json").is_file():
            raise ModelError(f"the embedded model is not in this installation ({path}); reinstall, or give --model")
        return EMBEDDED, "", path
    path = user_path(name)
    if path.is_dir():
        return path.resolve().name, "", path
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name:
        raise ModelError(f"no model folder {name!r}; give a folder with config.json, or a Hugging Face id owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, local_files_only=True))
        held = "only partly" if missing_weights(folder) else "whole"
    except Exception:
        held = "not"
    if held != "whole":
        if local:
            raise ModelError(f"{name} is {held} cached on this machine, and nothing is downloaded to look at it")
        if HF_HUB_OFFLINE:
            raise ModelError(f"{name} is {held} cached on this machine and HF_HUB_OFFLINE is set") from None
        try:
            bars = None if progress is None else _counting(progress)
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=PATTERNS, tqdm_class=bars))
        except Exception as error:  # the transport's own too, whose package differs between huggingface_hub versions
            raise ModelError(f"cannot get {name} from the Hugging Face hub: {_first_line(error)}") from None
    return name, folder.name, folder


def _counting(progress: Callable[[int, int], None]) -> type[tqdm]:
    """Bars for the hub's downloads that paint nothing and tell ``progress`` the bytes."""
    from huggingface_hub.utils import tqdm

    counts: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})
            self.of_bytes = kwargs.get("unit") == "B"  # another one counts files
            if self.of_bytes:
                counts.append(self)

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            # huggingface_hub 2.4 has two: one of what came, whose total is a guess, and one of what is written.
            total = min((bar.total or 0 for bar in counts), default=0)
            if self.of_bytes and total:
                progress(int(min(max(bar.n for bar in counts), total)), int(total))

    return Bar


def missing_weights(path: Path) -> list[str]:
    """The weight files that the model in ``path`` has not got: what a download that was broken off leaves out."""
    if not any(path.glob("model*.safetensors")):
        return ["model.safetensors"]
    try:
        index = json.loads((path / "model.safetensors.index.json").read_text(encoding="utf-8"))
        wanted = {name for name in index["weight_map"].values() if name and Path(name).name == name}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # one file, or not as it should
        return []
    return sorted(name for name in wanted if not (path / name).is_file())


def read_config(path: Path) -> dict[str, Any]:
    """The config of the model in ``path``. Raises ``ModelError`` that names a field no model can do without."""
    file = path / "config.json"
    check_size(file, MAX_TEXT, ModelError, "a model's config is a small JSON object")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file}: wanted one JSON object")
    kind = config.get("model_type")
    if not (isinstance(kind, str) and kind) and "model_file" not in config:
        raise ModelError(f"{file}: model_type is {_shown(kind)}, wanted a name such as llama")
    for name in (*LAYER_COUNTS, *WIDTHS):
        value = config.get(name)
        if isinstance(value, str | bool) or (isinstance(value, int) and value < 1):
            raise ModelError(f"{file}: {name} is {_shown(value)}, wanted a number from 1 up")
    return config


def _shown(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def fingerprint(path: Path) -> str:
    """A hash that differs between quantisations and between fine-tunes of one shape.

    Covers the config without comments, every tensor's name, dtype, shape, and 512 bytes from the
    start, the middle and the end of its data: a few hundred small reads, whatever the size.
    """
    digest = hashlib.sha256()
    config = read_config(path)
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    files = sorted([*path.glob("model*.safetensors"), *path.glob("adapters.safetensors")])
    if not files:
        raise ModelError(f"{path}: no model*.safetensors")
    for file in files:
        with open(file, "rb") as f:
            head = f.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 0 < length <= 100 << 20:
                raise ModelError(f"{file}: not a safetensors file")
            try:
                header = json.loads(f.read(length))
                header.pop("__metadata__", None)
                for name in sorted(header):
                    begin, end = header[name]["data_offsets"]
                    digest.update(f"{name} {header[name]['dtype']} {header[name]['shape']}".encode())
                    for at in sorted({begin, (begin + end) // 2, max(begin, end - 512)}):
                        f.seek(8 + length + at)
                        digest.update(f.read(max(0, min(512, end - at))))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
                raise ModelError(f"{file}: its safetensors header is corrupt") from None
    return digest.hexdigest()[:32]


def load_model(
    name: str | None = None,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a chat model with mlx-lm. Call it on the thread that will use it. Raises ``ModelError``."""
    id_, revision_, path = resolve(name, revision)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{path}: no config.json; this is not a model folder")
    import mlx.core as mx
    from mlx_lm.utils import load_adapters, load_config, load_tokenizer
    from mlx_lm.utils import load_model as load_weights

    from .architectures import find_classes, find_tokenizer

    part = str(path)
    with _quiet():
        try:
            mark = fingerprint(path)
            own: Any = {"get_model_classes": find_classes} if find_classes(load_config(path)) else {}
            model, config = load_weights(path, trust_remote_code=trust_remote_code, **own)
            model = _unpacked(model)
            if adapter is not None:
                part = f"the adapter {adapter} on {path}"
                model = load_adapters(model, adapter)
                model.eval()
                mark = _with_adapter(mark, adapter)
            # The parameters alone would leave lazy arrays (RoPE frequencies) tied to this moment's stream.
            mx.eval(model)
            part = f"the tokenizer of {path}"
            tokenizer = find_tokenizer(config, path) or load_tokenizer(
                path, {"trust_remote_code": trust_remote_code}, eos_token_ids=config.get("eos_token_id")
            )
            _tolerate_padding(tokenizer)
        except ModelError:
            raise
        except Exception as error:  # mlx-lm, transformers and safetensors raise many kinds here
            of_weights = _wrong_layers(path) if part == str(path) else None
            raise ModelError(f"cannot load {part}: {of_weights or _reason(error)}") from None
    layers = getattr(model, "layers", None) or []
    identity = Identity(id_, revision_, mark, str(config.get("model_type")), len(layers), sizes(config)[1])
    template = ChatTemplate(tokenizer, f"{id_} {config.get('_name_or_path', '')}")
    return LoadedModel(model, tokenizer, config, path, identity, template, adapter)


def _unpacked(model: nn.Module) -> nn.Module:
    """``model`` with its weights in float32, if it runs on a CPU and is small; the same numbers in more bytes.

    On a CPU, mlx 0.32 multiplies packed weights with the rows of a batch one after the other; with a good BLAS,
    sixteen rows of plain ones take twice as long as one (`docs/results.md`). Larger models stay packed: reading
    their weights is what takes the time.
    """
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.utils import dequantize_model

    packed = [m for m in model.modules() if isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    size = sum(m.weight.size * m.weight.itemsize * 32 // m.bits for m in packed)
    exact = all(m.scales.dtype == mx.float32 for m in packed)  # in 16 bits, unpacking would round
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    return dequantize_model(model) if packed and exact and on_cpu and size <= UNPACKED_MOST else model


class _Texts(list):
    """The texts of a tokenizer's tokens, with none for the tokens that pad a model's vocabulary beyond them."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) if index < len(self) else b""


def _tolerate_padding(tokenizer: TokenizerWrapper) -> None:
    """Let sentencepiece models say tokens without a text, as they do when steered far too hard.

    mlx-lm 0.32.2 does so for byte-level ones; for these it fails with ``IndexError`` in mid-reply.
    """
    from mlx_lm.tokenizer_utils import SPMStreamingDetokenizer

    original = tokenizer._detokenizer  # `detokenizer` is a shallow copy of it
    if isinstance(original, SPMStreamingDetokenizer):
        original.tokenmap = _Texts(original.tokenmap)


def sizes(config: dict[str, Any]) -> tuple[int, int]:
    """(layers, width) by a model's config, or by that of its text model; 0 for what it does not say."""

    def find(names: tuple[str, ...]) -> int:
        values = (c.get(n) for c in (config.get("text_config"), config) if isinstance(c, dict) for n in names)
        return next((v for v in values if isinstance(v, int)), 0)

    return find(LAYER_COUNTS), find(WIDTHS)


def identify(
    name: str | None = None, local: bool = False, adapter: str | None = None
) -> tuple[Identity, dict[str, Any]]:
    """A model's identity and config from its files alone, without loading it. Raises ``ModelError``."""
    id_, revision, path = resolve(name, local=local)
    try:
        config = read_config(path)
        mark = fingerprint(path)
        if adapter is not None:
            mark = _with_adapter(mark, adapter)
        return Identity(id_, revision, mark, str(config.get("model_type")), *sizes(config)), config
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {_first_line(error)}") from None


def servable(config: dict[str, Any]) -> bool:
    """Whether mlx-lm, or this package for it, has code for a model's architecture."""
    import importlib.util

    from mlx_lm.utils import MODEL_REMAPPING

    from .architectures import find_classes

    kind = str(config.get("model_type", ""))
    kind = MODEL_REMAPPING.get(kind, kind)
    if "model_file" in config or find_classes(config):
        return True
    return kind.isidentifier() and importlib.util.find_spec(f"mlx_lm.models.{kind}") is not None


def local_models() -> Iterator[tuple[str, Path, int]]:
    """(name, folder, bytes) of the models on this machine: the embedded one and those in the hub's cache."""
    path = embedded_path()
    if (path / "config.json").is_file():
        yield EMBEDDED, path, _size(path)
    from huggingface_hub import scan_cache_dir

    try:
        repos = scan_cache_dir().repos
    except Exception:  # no cache yet
        return
    for repo in sorted(repos, key=lambda r: r.repo_id):
        if repo.repo_type != "model":
            continue
        # What `resolve` takes is `main`; without one, the newest.
        snapshots = sorted(repo.revisions, key=lambda s: ("main" in s.refs, s.last_modified), reverse=True)
        folder = snapshots[0].snapshot_path if snapshots else None
        if folder is not None and (folder / "config.json").is_file():
            yield repo.repo_id, folder, _size(folder)


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.glob("model*.safetensors"))


def _wrong_layers(path: Path) -> str | None:
    """How config and weights disagree about the number of layers, if they do."""
    from safetensors import SafetensorError, safe_open

    numbers: list[int] = []
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        found = {name for name in LAYER_COUNTS if isinstance(config.get(name), int)}
        for file in path.glob("model*.safetensors"):
            with safe_open(file, "numpy") as tensors:
                names = " ".join(tensors.keys())
            numbers += [int(n) for n in re.findall(r"\b(?:layers|h|blocks)\.(\d+)\.", names)]
    except (OSError, ValueError, AttributeError, SafetensorError):
        return None  # broken in another way
    for name in found:
        if numbers and config[name] != max(numbers) + 1:
            return f"config.json says {name} {config[name]}, the weights have {max(numbers) + 1} layers"
    return None


def _with_adapter(mark: str, adapter: str) -> str:
    """The fingerprint of a model that has ``mark``, with an adapter on it. Raises ``ModelError``."""
    digest = hashlib.sha256()
    files = sorted(Path(adapter).glob("adapter*"))
    if not files:
        raise ModelError(f"{adapter}: no adapter is in this folder")
    for file in files:
        digest.update(file.read_bytes())
    return hashlib.sha256(f"{mark} {digest.hexdigest()}".encode()).hexdigest()[:32]


def _reason(error: BaseException) -> str:
    """What an error of mlx-lm says, with the field that it misses where it says no more than that."""
    text = _first_line(error)
    if missing := re.search(r"missing \d+ required positional arguments?: (.*)", text):
        return f"its config.json lacks {missing[1]}"
    if isinstance(error, AttributeError) and (missing := re.search(r"SimpleNamespace' object has no (.*)", text)):
        return f"its adapter_config.json lacks {missing[1].removeprefix('attribute ')}"
    if isinstance(error, KeyError | AttributeError | TypeError):
        return f"{type(error).__name__}: {text}"
    return text


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    first, *more = text.splitlines()
    return (f"{first} {more[0].strip()}" if first.rstrip().endswith(":") and more else first)[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice and progress bars out of the user's terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        from transformers.utils import logging  # it reads the variable once, when it is imported

        logging.set_verbosity_error()
    yield
