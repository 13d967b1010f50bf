"""The steps of a repair, each a function of its own: `repairing.py` puts them together."""
