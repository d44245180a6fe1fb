"""What training stands on: batches, the step, the learner's state, checkpoints, processes."""
