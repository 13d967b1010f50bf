"""Whole experiments: from the name of a data set to a folder with a record."""
