"""Metrics: distortion, verification, and statistics.

The size of a perturbation, whether two embeddings match at a false accept rate, and confidence
intervals of means and rates. Imports base modules only.
"""

from deid_jax.metrics.distortion import SSIM_WINDOW, l2, linf, misclassified, mssim

__all__ = ["SSIM_WINDOW", "l2", "linf", "misclassified", "mssim"]
