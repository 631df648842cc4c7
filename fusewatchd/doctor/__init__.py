"""``fusewatchd doctor``: looks at everything that a recovery needs, and changes nothing."""
