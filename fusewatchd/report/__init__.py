"""Tells of finished cycles: log, metrics, Events, systemd.

Called by ``daemon`` after each cycle. It may import ``model``.
"""
