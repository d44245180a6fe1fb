"""Prefect flows over DVC's graph: when and where it runs. A task runs one stage; only DVC caches results."""

# Names on Prefect's server: the work pool, and its queue that runs one flow run at a time.
POOL, GPU = "goal", "gpu"
