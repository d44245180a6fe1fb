"""Verbs of the command line that have more than a line of their own."""
