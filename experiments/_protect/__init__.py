"""Parts of `experiments.protect`."""
