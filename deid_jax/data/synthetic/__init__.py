"""The synthetic data set: 30 procedurally generated persons with 30 images each.

An `Identity` is a person, a `Variation` is everything else in an image, and `render` makes an
image from the two. Everything follows from the seed; the image size changes only the number of
pixels, not who or what is in the image.
"""

from deid_jax.data.synthetic.identity import Identity, sample_identity
from deid_jax.data.synthetic.photo_set import IMAGES_PER_PERSON, PERSONS, load
from deid_jax.data.synthetic.rendering import render
from deid_jax.data.synthetic.variation import Variation, sample_variation

__all__ = [
    "IMAGES_PER_PERSON",
    "PERSONS",
    "Identity",
    "Variation",
    "load",
    "render",
    "sample_identity",
    "sample_variation",
]
