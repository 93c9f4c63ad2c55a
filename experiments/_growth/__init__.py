"""Parts of `experiments.growth`: workloads, and what they use when run in a new process."""
