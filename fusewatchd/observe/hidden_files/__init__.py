"""Counts what lies in the node's directories below volumes; the worker is ``look``."""
