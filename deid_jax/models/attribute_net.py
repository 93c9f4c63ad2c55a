"""A small network that predicts several attributes of a face: one trunk, a head for each.

Input is RGB in [0, 1]; output is logits, one row per attribute.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.models.layers import conv, max_pool

# The logit of a class that an attribute does not have, so that its probability is 0.
UNUSED = -1e9

# The trunk works on about this many positions across and down, whatever the image size.
_GRID = 32


class AttributeNet(nn.Module):
    """Patches – Conv 32 3×3 – Conv 64 3×3 – Conv 128 3×3 – FC 256 – A heads.

    Patches of f×f pixels, f = ⌊S / 32⌉ (at least 1; 2 at 64 px), become channels, so that the
    trunk costs about the same at every size. Only pixels to the right of and below the last
    whole patch are dropped. BatchNorm and ReLU follow all layers but the heads, 2×2 max-pooling
    the convolutions, and dropout of rate 0.25 the dense layer.

    Attributes:
      num_classes: K₁, ..., K_A, the number of classes of each attribute.
    """

    num_classes: tuple[int, ...]
    min_image_size: ClassVar[int] = 8
    regularised: ClassVar[tuple[str, ...]] = ("heads",)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits float32[B, A, max K] of images float32[B, S, S, 3] in [0, 1].

        Entry [b, a, k] is `UNUSED` for k >= K_a. Training mode needs the mutable collection
        "batch_stats" and a "dropout" key.
        """
        x = patches(images - 0.5, max(1, round(images.shape[1] / _GRID)))
        for number, features in enumerate((32, 64, 128), start=1):
            x = conv(features, 3, name=f"conv{number}")(x)
            x = max_pool(nn.relu(self._normalise(x, f"bn{number}", train=train)))
        x = nn.Dense(256, name="fc")(x.reshape(len(x), -1))
        x = nn.relu(self._normalise(x, "bn4", train=train))
        x = nn.Dropout(0.25, deterministic=not train)(x)
        heads, classes = len(self.num_classes), max(self.num_classes)
        x = nn.Dense(heads * classes, name="heads")(x).reshape(len(x), heads, classes)
        used = np.arange(classes)[None] < np.array(self.num_classes)[:, None]
        return jnp.where(used[None], x, UNUSED)

    def _normalise(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)(x)


def patches(images: jax.Array, size: int) -> jax.Array:
    """Rearranges patches of size×size pixels into channels, ordered by row, column, C.

    Maps float[B, H, W, C] to float[B, H // size, W // size, size · size · C].
    """
    rows, columns = images.shape[1] // size, images.shape[2] // size
    whole = images[:, : rows * size, : columns * size]
    split = whole.reshape(len(images), rows, size, columns, size, -1)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), rows, columns, -1)
