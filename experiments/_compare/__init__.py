"""Parts of `experiments.compare`: trials of ours and of peers, their summaries and tables."""
