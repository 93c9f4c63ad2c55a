"""Parts of `experiments.attack`."""
