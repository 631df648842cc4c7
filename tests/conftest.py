"""Settings of all tests."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# How long an example takes says something about the machine and its load, and nothing about us.
settings.register_profile("patient", settings.default, deadline=None)
settings.load_profile("patient")

# Hundreds of tests start daemons, servers and containers of this package.  Told to write no
# bytecode every one of them would compile it anew, and every worker the tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
