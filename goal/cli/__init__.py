"""The command line: `goal <verb>`. The verbs import what they need, so that `goal --help` is fast."""
