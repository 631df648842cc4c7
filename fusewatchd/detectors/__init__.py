"""One rule for each way a bind can be unwell; pure."""
