"""The status document and its views: tables, ``explain``, advice.

Called by ``daemon``, ``serve`` and ``cli``. It may import ``model``.
"""
