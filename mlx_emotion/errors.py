"""One family of errors. Each message is one line that says what was wrong, where, and what to do."""

from __future__ import annotations


class MLXEmotionError(Exception):
    """Base of every error this project raises on purpose. ``exit_status`` is what the command line ends with."""

    exit_status = 1


class UsageError(MLXEmotionError):
    """The request itself is wrong: an unknown emotion, a malformed spec, a number out of range."""

    exit_status = 2


class DefinitionError(UsageError):
    """A file with emotions of a user's own has something wrong in it."""

    exit_status = 1


class ModelError(MLXEmotionError):
    """A model is missing, corrupt, not supported, or cannot be steered."""


class PackError(MLXEmotionError):
    """A pack is missing, corrupt, or made for another model."""


class QueryError(MLXEmotionError):
    """A query file has the wrong shape."""


class ExtractionError(MLXEmotionError):
    """An extraction cannot go on."""


class StoreError(MLXEmotionError):
    """A conversation cannot be read or kept."""


class EvaluationError(MLXEmotionError):
    """An evaluation cannot go on: another run's folder, a judge out of reach, a missing extra."""


class Interrupted(MLXEmotionError):
    """The user stopped the work; what was done so far is kept."""

    exit_status = 130
