"""Kernel primitives: system calls, /proc, /sys; readers and writers use the same ones.

Called by ``observe``, ``act`` and ``doctor``. It may import ``model``.
"""
