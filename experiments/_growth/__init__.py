"""Parts of `experiments.growth`: workloads, measured in a new process each."""
