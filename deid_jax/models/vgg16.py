"""Model B: VGG-Face's VGG-16 with the paper's head of 256 and K units.

Simonyan, Zisserman: "Very Deep Convolutional Networks", 2015; Parkhi, Vedaldi, Zisserman:
"Deep Face Recognition", 2015. Layer names are VGG-Face's. Input is RGB in [0, 1]; output is
logits (the paper's softmax is in the loss).
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from deid_jax.models.layers import conv, max_pool

# Mean of VGG-Face's training images, R, G, B in 0–255.
VGG_FACE_MEAN = (129.1863, 104.7624, 93.5940)

# Block -> (number of 3×3 convolutions, features).
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(nn.Module):
    """13 3×3 convolutions in five blocks, fc6 and fc7 of 4096, then FC 256 – FC K.

    fc7 after its ReLU is VGG-Face's 4096-d descriptor. BatchNorm and ReLU follow FC 256. The
    first dense layer, fc6, adapts to the image size.

    Attributes:
      num_classes: K.
      dtype: the dtype of the layers' computations, e.g. bfloat16; None: the input's. Weights
        and logits stay float32.
    """

    num_classes: int
    dtype: DTypeLike | None = None
    min_image_size: ClassVar[int] = 32
    # The layer whose kernel the paper regularises (L2, weight 1e-3).
    regularised: ClassVar[tuple[str, ...]] = ("fc8",)

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits float32[B, K] of images float32[B, H, W, 3] in [0, 1].

        Training mode needs the mutable collection "batch_stats".
        """
        he = nn.initializers.he_normal()
        x = 255 * images - jnp.array([[[VGG_FACE_MEAN]]], images.dtype)
        for block, (depth, features) in enumerate(BLOCKS, start=1):
            for layer in range(1, depth + 1):
                x = nn.relu(conv(features, 3, f"conv{block}_{layer}", self.dtype)(x))
            x = max_pool(x)
        x = x.reshape(len(x), -1)
        dense = functools.partial(nn.Dense, kernel_init=he, dtype=self.dtype)
        x = nn.relu(dense(4096, name="fc6")(x))
        x = nn.relu(dense(4096, name="fc7")(x))
        x = dense(256, name="fc8")(x)
        x = nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=self.dtype, name="bn8"
        )(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="fc9")(nn.relu(x))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
