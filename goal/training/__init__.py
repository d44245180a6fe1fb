"""Training: batches, the step, the learner, checkpoints, several processes and the loop."""
