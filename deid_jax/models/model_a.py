"""Model A: the paper's small recogniser, two convolutional and two dense layers.

Input is RGB in [0, 1]; output is logits (the paper's softmax is in the loss).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from deid_jax.models.layers import conv, max_pool


class ModelA(nn.Module):
    """Conv 32 5×5 – Conv 64 5×5 – FC 512 – FC K.

    BatchNorm and ReLU follow all but the last layer, 2×2 max-pooling the convolutions, and
    dropout of rate 0.9 (the fraction dropped) the first dense layer, which adapts to the
    image size.

    Attributes:
      num_classes: K.
      dtype: the dtype of the layers' computations, e.g. bfloat16; None: the input's. Weights
        and logits stay float32.
    """

    num_classes: int
    dtype: DTypeLike | None = None
    min_image_size: ClassVar[int] = 4
    # The layers whose kernels the paper regularises (L2, weight 1e-3).
    regularised: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "fc1")

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits float32[B, K] of images float32[B, H, W, 3] in [0, 1].

        Training mode needs the mutable collection "batch_stats" and a "dropout" key.
        """
        x = images - 0.5
        for number, features in enumerate((32, 64), start=1):
            x = conv(features, 5, f"conv{number}", self.dtype)(x)
            x = self._normalise(x, f"bn{number}", train=train)
            x = max_pool(nn.relu(x))
        x = nn.Dense(512, dtype=self.dtype, name="fc1")(x.reshape(len(x), -1))
        x = nn.relu(self._normalise(x, "bn3", train=train))
        x = nn.Dropout(0.9, deterministic=not train)(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="fc2")(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _normalise(self, x: jax.Array, name: str, *, train: bool) -> jax.Array:
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, dtype=self.dtype, name=name
        )(x)
