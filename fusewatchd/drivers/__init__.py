"""What is known of the layouts of FUSE drivers; pure."""
