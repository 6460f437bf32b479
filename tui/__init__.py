"""The terminal app: talk with a model, and change what it feels while it speaks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def run(
    model: str | None = None,
    *,
    feeling: str = "neutral",
    seed: int | None = None,
    resume: str | None = None,
    loading: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Open the app and return its exit status.

    ``model`` is as in ``mlx_emotion.load`` and ``loading`` the other arguments of it; ``feeling`` is the
    first one, ``seed`` that of every message's first reply (a new one each time without it), ``options`` are those of
    ``Model.chat``. ``resume`` is a conversation's id or title, or ``""`` for the latest. Raises
    ``MLXEmotionError`` where the app cannot begin at all. Left while a model is loaded or made ready, it
    ends the process.
    """
    import asyncio

    from mlx_emotion import hurry

    from . import pasting
    from .app import EmotionApp

    # The engine's thread and this one take turns; Python's own 5 ms would be felt in every key.
    sys.setswitchinterval(0.001)
    if not (loading or {}).get("trust_remote_code"):
        # Where PyTorch is installed, transformers takes 1.5 s to import it, for nothing: only tokenizers are used.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # how Python marks a module as missing
    pasting.install()
    app = EmotionApp(model, feeling=feeling, seed=seed, resume=resume, loading=loading, options=options)

    async def main() -> None:
        await app.run_async()
        if app.loader.busy:
            hurry(app.return_code or 0)

    asyncio.run(main())
    return app.return_code or 0
