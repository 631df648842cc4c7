"""``fusewatchd doctor``: looks at everything that a recovery needs, and changes nothing.

Called by ``cli``. ``*_facts`` find out and may import all but ``demo`` and ``act``; ``*_checks``
are pure.
"""
