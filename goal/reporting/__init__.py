"""What the report stands on: its facts, examples, pictures and page."""
