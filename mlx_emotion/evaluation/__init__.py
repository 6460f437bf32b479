"""Measuring a model: the papers' metrics, tables and figures (`docs/evaluation.md`)."""
