"""Transforms: what happens to an image on its way to a recogniser.

Differentiable ones for attacks, and real ones (JPEG, resizing, blur, denoising) for evaluation.
Imports base modules only.
"""
