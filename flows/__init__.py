"""When and where: Prefect flows over DVC's graph. A task runs one stage and caches nothing of its own."""

# Names that Prefect's server knows: the work pool, and its queue of which one run at a time is worked on.
POOL, GPU = "goal", "gpu"
