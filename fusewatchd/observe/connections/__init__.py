"""How FUSE connections answer: which are asked when, and the workers that ask."""
