"""Where a result comes from, its record in MLflow, and the registry with its promotions."""
