"""The command line: `goal <verb>`. Imports are inside the verbs, so that `goal --help` answers at once."""
