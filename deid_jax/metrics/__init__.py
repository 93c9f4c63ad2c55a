"""Metrics: distortion, verification, statistics.

How far an image was changed, whether two embeddings show one person at a false accept rate, and
how sure a figure is. Imports base modules only.
"""

from deid_jax.metrics.distortion import SSIM_WINDOW, l2, linf, misclassified, mssim, summarise

__all__ = ["SSIM_WINDOW", "l2", "linf", "misclassified", "mssim", "summarise"]
