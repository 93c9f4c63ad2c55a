"""Parts of `experiments.protect` that `experiments.webapp` shares, and its table."""
