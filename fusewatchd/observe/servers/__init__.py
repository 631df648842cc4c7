"""How FUSE servers end: pidfds, sockets, OOM kills."""
