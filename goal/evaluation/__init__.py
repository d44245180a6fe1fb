"""What measuring stands on: embeddings, galleries, intervals and tables."""
