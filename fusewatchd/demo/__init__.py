"""A node in a private mount namespace to show and test the daemon on; no daemon code here."""
