"""Peers: other libraries' attacks, PyTorch twins of the recognisers, plain Flax networks.

`experiments.benchmark` times them and `experiments.compare` compares with them. Only modules
that say so import PyTorch, which the project itself never needs.
"""
