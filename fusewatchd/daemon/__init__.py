"""The process: builds the adapters, waits for events, starts cycles.

Called by ``cli``. It may import every folder but ``demo`` and ``doctor``.
"""
