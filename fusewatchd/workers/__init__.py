"""Processes of the daemon's own that may hang and be replaced.

Called by ``observe``, ``act`` and ``daemon``. It may import ``linux``.
"""
