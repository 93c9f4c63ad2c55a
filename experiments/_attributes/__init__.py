"""Parts of `experiments.attributes`."""
