"""What single commands do that is no part of the daemon.  Called by ``cli.py`` alone.

May import every stage but ``demo``.
"""
