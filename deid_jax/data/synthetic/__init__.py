"""The embedded data set: 30 procedural persons with 30 photographs each.

A person is an `Identity`, an image's circumstances are a `Variation`, and `render` makes the
photograph of one in the other. Everything follows from the seed; the image size changes the
number of pixels, not who or what is in the image.
"""

from deid_jax.data.synthetic.identity import Identity, sample_identity
from deid_jax.data.synthetic.photo_set import PERSONS, PICTURES_PER_PERSON, load
from deid_jax.data.synthetic.rendering import render
from deid_jax.data.synthetic.variation import Variation, sample_variation

__all__ = [
    "PERSONS",
    "PICTURES_PER_PERSON",
    "Identity",
    "Variation",
    "load",
    "render",
    "sample_identity",
    "sample_variation",
]
