"""From findings to actions, with the present time as an argument; pure.

Called by ``reconcile``. It may import ``model``, ``parse``, ``diagnose`` and ``config``; neither
``observe`` nor ``act`` nor ``linux``.
"""
