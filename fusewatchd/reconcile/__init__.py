"""One cycle: observe, diagnose, plan, act, remember.

Called by ``daemon``. It may import ``model``, ``parse``, ``config``, ``diagnose`` and ``plan``;
what observes and acts is handed to it.
"""
