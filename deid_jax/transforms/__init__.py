"""Transforms: what happens to an image on its way to a recogniser.

Differentiable ones for attacks, and the real ones (JPEG, resizing, blur, denoiser) for tests.
Imports base modules only.
"""
