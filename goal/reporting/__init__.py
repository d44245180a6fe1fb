"""What the report stands on: its facts, examples, figures and page; and all that is drawn."""
