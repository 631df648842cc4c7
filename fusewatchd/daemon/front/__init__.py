"""The daemon's side of its front: the process, what is handed over to it, what it asks for."""
