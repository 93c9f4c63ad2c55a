"""Parts of `experiments.benchmark`: clocks, candidates, layers, results and their tables."""
