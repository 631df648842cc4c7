"""The configuration: keys, checks of values, templates, and the files that they name.

Read by ``cli`` and handed down as ``Settings``. It may import ``model`` and ``parse``.
"""
