"""Parts of `experiments.transfer`."""
