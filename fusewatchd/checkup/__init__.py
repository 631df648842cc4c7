"""What ``fusewatchd doctor`` judges by: facts in, findings out; pure."""
