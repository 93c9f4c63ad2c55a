"""Parts of `experiments.webapp`."""
