"""The app on a scripted model, with a clock, a cursor and animations that stand still."""

from __future__ import annotations

import pytest

from mlx_emotion.tui.app import EmotionApp
from mlx_emotion.tui.settings import Settings

from .fakes import Fake


@pytest.fixture(autouse=True)
def collected(monkeypatch) -> None:
    """What one test leaves is collected: the app keeps the collector off what it takes to stay."""
    monkeypatch.setattr("gc.freeze", lambda: None)


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """A slow machine may take long for what a key sets going; the keys behind it wait all the same."""
    monkeypatch.setattr("mlx_emotion.tui.keyboard.PATIENCE", 60)


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def make_app(fake):
    def make(model: Fake | None = None, settings: Settings | None = None, **options) -> EmotionApp:
        still = settings or Settings(animation=False)
        return EmotionApp(load=lambda name: model or fake, settings=still, **options)

    return make


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
