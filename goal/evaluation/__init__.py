"""What measuring stands on: embeddings, galleries, intervals, tables and pictures."""
