"""Parts of `experiments.compare`."""
