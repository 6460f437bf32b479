"""Packs on the Hugging Face hub: a repository holds packs as files, and a model card."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mlx_emotion.errors import MLXEmotionError, PackError, UsageError
from mlx_emotion.files import atomic_write

from .pack import EmotionVectors, Identity, PackInfo, read_info

SUFFIX = ".safetensors"
MAX_BYTES = 8 << 30
CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte after which a hub that is asked for packs counts as gone."""


def push(pack: EmotionVectors, repo: str, private: bool = False) -> str:
    """Upload ``pack``'s file to ``repo``, made if there is none, with a model card if it has none; returns the URL.

    Needs a token (`hf auth login`, or ``HF_TOKEN``). Raises ``PackError``.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    if pack.path is None:
        raise PackError("this pack is in no file yet; save it first")
    if repo.count("/") != 1:  # huggingface_hub would make one under the user's own name
        raise _no_repository(repo)
    with _hub_errors(repo):
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)  # else as the owner has it
        present = {f.rfilename for f in api.model_info(repo, timeout=TIMEOUT).siblings or ()}
        operations = [CommitOperationAdd(pack.path.name, str(pack.path))]
        if "README.md" not in present:
            operations.append(CommitOperationAdd("README.md", model_card(pack, repo).encode()))
        commit = api.create_commit(repo, operations, commit_message=f"Add {pack.path.name}")
    return str(commit.commit_url)


def pull(repo: str, folder: Path, model: Identity | None = None) -> list[Path]:
    """Download the packs of ``repo`` into ``folder``, only those for ``model`` where one is given.

    A pack is complete and checked before it takes its name, ``<owner>--<repo>--<file>``. Raises ``PackError``, and
    ``UsageError`` where a pack of that name is here that differs, such as one calibrated here.
    """
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        api = HfApi()
        files = {f.rfilename: f.size for f in api.model_info(repo, files_metadata=True, timeout=TIMEOUT).siblings or ()}
        found: dict[str, PackInfo] = {}
        for name in sorted(files):
            if name.endswith(SUFFIX) and (info := _remote_info(api, repo, name)) is not None:
                found[name] = info
        if not found:
            raise PackError(f"{repo} on the hub holds no pack")
        chosen = [n for n, i in found.items() if model is None or i.model.fingerprint == model.fingerprint]
        if not chosen and model is not None:
            made_for = sorted({f"{i.model.id} ({i.model.fingerprint})" for i in found.values()})
            raise PackError(
                f"{repo} on the hub has no pack for {model.id} ({model.fingerprint}), only for {', '.join(made_for)}"
            )
        places = {name: folder / f"{repo}/{name}".replace("\\", "/").replace("/", "--") for name in chosen}
        for name, path in places.items():
            with contextlib.suppress(PackError):  # none there, or a broken one
                if (here := read_info(path)) != found[name]:
                    what = "was changed here" if here.created == found[name].created else "is another than the hub's"
                    raise UsageError(f"{path} {what}; remove or rename it to have the hub's. Nothing was downloaded")
        for name, path in places.items():
            _download(api, repo, name, files[name], path)
    return list(places.values())


def _remote_info(api, repo: str, name: str) -> PackInfo | None:
    """A remote pack's metadata, from its first bytes; ``None`` for a file that is not a pack."""
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        text = api.parse_safetensors_file_metadata(repo, name).metadata.get("mlx_emotion")
    except SafetensorsParsingError as error:
        raise PackError(f"{repo} on the hub: {name} is broken: {error}".splitlines()[0]) from None
    try:
        return None if text is None else PackInfo.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PackError(f"{repo} on the hub: {name} has metadata that this version cannot read: {error}") from None


def _download(api, repo: str, name: str, size: int | None, path: Path) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url, headers = hf_hub_url(repo, name, endpoint=api.endpoint), build_hf_headers()
    # Not hf_hub_download: a second copy in its cache, and it never gives up on a file that always ends early.
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        hf_raise_for_status(response)  # out here: it is an OSError too, but none of this machine's
        _keep(response, f"{repo} on the hub: {name}", size, path)


def _keep(response, what: str, size: int | None, path: Path) -> None:
    """Write a pack that is being downloaded to ``path``, once it is complete and one."""
    with atomic_write(path, PackError) as temporary:
        got = 0
        with open(temporary, "wb") as file:
            for chunk in response.iter_bytes(CHUNK):
                got += len(chunk)
                if got > MAX_BYTES:
                    raise PackError(f"{what} is larger than {MAX_BYTES >> 30} GiB")
                file.write(chunk)
        if size is not None and got != size:
            raise PackError(f"{what} came as {got} bytes of {size}; try again")
        try:
            EmotionVectors.load(temporary, samples=True)
        except PackError as error:
            raise PackError(str(error).replace(str(temporary), what)) from None


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do; keep its own lines and bars out."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars:
        disable_progress_bars()
    try:
        yield
    except MLXEmotionError:
        raise
    except HFValidationError:
        raise _no_repository(repo) from None
    except Exception as error:  # the transport's own too, whose package differs between huggingface_hub versions
        raise PackError(f"{repo} on the hub: {_what(error)}") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            enable_progress_bars()


def _no_repository(repo: str) -> UsageError:
    return UsageError(f"{repo!r} is not a repository; write owner/name")


def _what(error: BaseException) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    while not isinstance(error, HfHubHTTPError) and error.__cause__ is not None:
        error = error.__cause__  # an upload's error says no more than the file's name
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if not isinstance(error, HfHubHTTPError):
        # A hub may lack the newer of the two ways to upload, which huggingface_hub prefers.
        way_on = "set HF_HUB_DISABLE_XET=1 and try again" if "xet" in str(error) else "try again"
        return f"{type(error).__name__}: {_first_line(error)}; {way_on}"
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return f"refused ({status}): log in with `hf auth login`, or set HF_TOKEN to a token that may do this"
    if isinstance(error, EntryNotFoundError):
        return "a file that it lists is not there (404); try again"
    if status == 404:
        return "no such repository (404), or it is private and you are not logged in"
    if status >= 500:
        return f"the hub failed ({status}); try again later"
    return f"the hub answered {status}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:300]


CARD = """\
---
library_name: mlx-emotion
tags: [mlx-emotion, mlx, emotion-vectors, activation-steering]
{base}---

# Emotion vectors for {model}

Made with mlx-emotion: one vector for each decoder layer and emotion.
Added to the model's activations while it writes, they let it express the emotion; the method is that of
[arXiv 2502.04075](https://arxiv.org/abs/2502.04075).

| emotion | queries | scale of intensity 1.0 |
|---|---|---|
{rows}

- model: {model} {revision}, {architecture}, {layers} layers of width {width}, fingerprint `{fingerprint}`
- added at: {site}; extraction method: {method}; queries: {queries}

A pack is for one model in one quantisation: the fingerprint is of exactly those weights.

    mlx-emotion vectors pull {repo} --model {model}
    mlx-emotion chat --model {model} --emotion '{first}'
"""


def model_card(pack: EmotionVectors, repo: str) -> str:
    """The README of a repository with ``pack``."""
    info, model = pack.info, pack.info.model

    def row(name: str) -> str:
        scale = info.emotions[name].get("scale")
        shown = "not calibrated" if scale is None else f"{scale:.3g}"
        return f"| {name} | {info.emotions[name].get('count', 0)} | {shown} |"

    return CARD.format(
        base=f"base_model: {model.id}\n" if model.id.count("/") == 1 else "",
        rows="\n".join(map(row, pack)),
        model=model.id,
        revision=model.revision,
        architecture=model.architecture,
        layers=model.layers,
        width=model.width,
        fingerprint=model.fingerprint,
        site=info.site,
        method=info.method,
        queries=info.queries.get("name", "unknown"),
        repo=repo,
        first=next(iter(pack)),
    ).replace(" ,", ",")
