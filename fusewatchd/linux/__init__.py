"""Thin edges to the kernel: system calls, /proc, /sys and the processes that use them."""
