"""What the pipeline runs on: servers of this machine, containers, clusters."""
