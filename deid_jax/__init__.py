"""Adversarial face de-identification in JAX."""
