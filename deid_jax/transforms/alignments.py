"""Differentiable aligned crops, cut out of images by an affine map.

A map, float32[2, 3] as (A, b), takes a point p of the image to the point A p + b of the crop.
Coordinates refer to pixel centres; the first pixel is at (0, 0).
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Misalignment:
    """Random misalignment of crops, as standard deviations of normal draws.

    Other detectors place landmarks a little differently, and so cut a different crop.

    Attributes:
      rotation: in degrees.
      scale: of the scale's logarithm.
      shift: along each axis, relative to the crop's height.
      flips: the probability of mirroring left to right.
    """

    rotation: float = 3.0
    scale: float = 0.06
    shift: float = 0.03
    flips: float = 0.5

    def drawn(self, maps: jax.Array, key: jax.Array, height: int, width: int) -> jax.Array:
        """Maps to randomly misaligned crops of height × width: float32[B, 2, 3], key[B]."""

        def one(affine: jax.Array, key: jax.Array) -> jax.Array:
            turn, scale, *shift = jax.random.normal(key, (4,))
            coin = jax.random.bernoulli(jax.random.fold_in(key, 0), float(self.flips))
            angle = jnp.deg2rad(self.rotation) * turn
            across, down = jnp.cos(angle), jnp.sin(angle)
            linear = jnp.exp(self.scale * scale) * jnp.array([[across, -down], [down, across]])
            # Mirrored about the crop's centre, around which it is turned and scaled as well.
            linear = jnp.where(coin, jnp.array([[-1.0], [1.0]]), 1.0) * linear
            centre = jnp.array([width - 1, height - 1]) / 2
            moved = centre - linear @ centre + self.shift * height * jnp.stack(shift)
            return jnp.column_stack([linear @ affine[:, :2], linear @ affine[:, 2] + moved])

        return jax.vmap(one)(maps, key)


def cut(images: jax.Array, maps: jax.Array, height: int, width: int) -> jax.Array:
    """Crops by maps float32[B, 2, 3]: bilinear, as in recognisers' own preprocessing.

    Returns float32[B, height, width, C] of images float32[B, H, W, C]; black outside them.
    """
    back = jnp.linalg.inv(maps[:, :, :2])
    columns, rows = jnp.meshgrid(jnp.arange(width), jnp.arange(height))
    points = jnp.stack([columns, rows], axis=-1).reshape(1, -1, 2) - maps[:, None, :, 2]
    places = jnp.einsum("bij,bnj->bni", back, points, precision="highest")
    # From here on in coordinates of the image with black pixels around it.
    last = jnp.array(images.shape[2:0:-1]).reshape(1, 1, 2) + 1
    padded = jnp.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    flat = padded.reshape(len(images), -1, images.shape[3])
    places = jnp.clip(places + 1, 0, last)
    first = jnp.floor(places)
    right, below = jnp.split(places - first, 2, axis=-1)
    line = padded.shape[2]
    index = (first[..., 1] * line + first[..., 0]).astype(jnp.int32)

    def at(offset: int) -> jax.Array:
        return jnp.take_along_axis(flat, (index + offset)[..., None], axis=1)

    above = (1 - right) * at(0) + right * at(1)
    beneath = (1 - right) * at(line) + right * at(line + 1)
    crops = (1 - below) * above + below * beneath
    return crops.reshape(len(images), height, width, -1)
