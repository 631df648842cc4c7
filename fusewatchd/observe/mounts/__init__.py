"""The mount table of the host, kept up to date."""
