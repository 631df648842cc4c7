"""The values that flow from observation to report; no rules.  Everything may import it.

It may import nothing but the values beside the folders.
"""
