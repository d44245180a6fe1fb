"""When and where: Prefect flows over DVC's graph. A task runs one stage and caches nothing of its own."""
