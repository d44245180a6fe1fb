"""Measure models: embeddings, benchmarks, per-query results, intervals, comparisons and tables."""
