"""A FUSE server without libfuse, and what keeps or detaches one."""
