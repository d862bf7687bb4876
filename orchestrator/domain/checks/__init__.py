"""The checks after a boot: one judge a file; their terms are in base.py, their names in registry.py."""
