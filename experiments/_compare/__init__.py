"""Parts of `experiments.compare`: our trials and the peers', their summaries and tables."""
