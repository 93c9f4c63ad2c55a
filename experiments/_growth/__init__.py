"""Parts of `experiments.growth`."""
