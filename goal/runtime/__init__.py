"""What runs the work: files, locks, signals, devices, processes. Knows nothing of the method."""
