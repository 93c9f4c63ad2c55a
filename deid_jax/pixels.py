"""The 8-bit grid: the 256 values of a pixel, and rounding images to them.

Images are float[B, H, W, C] in [0, 1].
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

# A whole image on the host, uint8[H, W, 3] in sRGB order.
Pixels: TypeAlias = npt.NDArray[np.uint8]

# The 256 values of a pixel as float32. They are tabulated because compiled programs may differ
# in the last bit of a division by 255, and then an image would not equal itself.
LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)


def to_uint8(images: jax.Array) -> jax.Array:
    """round(255 x) as uint8, for images x in [0, 1]."""
    return jnp.round(255 * images).astype(jnp.uint8)


# 1/255 = _HIGH + _LOW. _HIGH has 9 bits, so a level times _HIGH is exact, and the sum rounds to
# LEVELS whether or not product and sum are fused. (XLA turns a division by 255 into a product
# with 1/255, which does not give LEVELS; looking LEVELS up takes twenty times as long.)
_HIGH = np.float32(float.fromhex("0x1.01p-8"))


_LOW = np.float32(1 / 255 - float(_HIGH))


def on_grid(images: jax.Array) -> jax.Array:
    """Rounds images in [0, 1] to the values that an 8-bit file gives back, bit for bit."""
    levels = jnp.round(255 * images).astype(jnp.float32)
    return (levels * _HIGH + levels * _LOW).astype(images.dtype)
