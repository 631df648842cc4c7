"""Settings of all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says something about the machine and its load, and nothing about us.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")
