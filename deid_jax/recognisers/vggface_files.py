"""Reads VGG-Face's weights for Model B from the files in which they are distributed.

There are three formats, distinguished by the suffix; none is ever unpickled:

- `.h5`: Keras, e.g. `rcmalli_vggface_tf_vgg16.h5` and `rcmalli_vggface_tf_notop_vgg16.h5`. One
  group per layer, with a kernel and a bias under any names (`conv1_1_W_1:0`,
  `conv1_1/kernel:0`). These networks take BGR.
- `.mat`: MatConvNet, e.g. `vgg_face.mat`. A cell `layers`, at the top or in a struct `net`, of
  structs with `name` and `weights` or `filters` and `biases`; fc6 and fc7 are convolutions of
  7×7 and 1×1. The network takes RGB.
- `.npz`: NumPy, arrays `<layer>_W` and `<layer>_b` or `<layer>/kernel` and `<layer>/bias`,
  RGB unless an array `channels` holds the text "BGR".

All three store kernels as height, width, inputs, outputs, or as inputs, outputs. The result
fits Model B: float32, RGB; fc6's inputs in the order height, width, channels.

Sources of the layouts: github.com/rcmalli/keras-vggface (`models.py`, `utils.py`), MatConvNet's
`cnn_vgg_faces.m`.
"""

import hashlib
import re
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.errors import InputError, one_line
from deid_jax.models.vgg16 import VGG16, VGG_FACE_MEAN
from deid_jax.types import NumpyArray

# The height and width at which VGG-Face was trained; fc6 takes their 7×7 features.
IMAGE_SIZE = 224
_TOP = ("fc6", "fc7")
_LAYER = re.compile(r"(conv\d_\d|fc[67])(?!\d)")


class Pretrained(NamedTuple):
    """Pretrained weights of a file, which are frozen in training, bit for bit.

    Layers are layer -> {"kernel": float32[...], "bias": float32[outputs]}.
    """

    file: str
    sha256: str
    layers: Mapping[str, Mapping[str, NumpyArray]]

    @property
    def source(self) -> dict[str, str]:
        """Where the weights come from; JSON-able."""
        return {"file": self.file, "sha256": self.sha256}


class _Contents(NamedTuple):
    """The content of a file: layer -> its arrays, and the order of the input's channels."""

    arrays: dict[str, list[NumpyArray]]
    channels: str


def load_vggface(path: str | Path, *, image_size: int = IMAGE_SIZE) -> Pretrained:
    """Reads VGG-Face's layers conv1_1 to fc7, its descriptor, or its convolutions alone.

    A file with fc6 and fc7 gives all 15 layers; one without ("notop") the 13 convolutions,
    for images of any size. The classifier of 2622 persons, fc8, is left out.

    `image_size` is the height and width in pixels of the images that Model B will take.

    Raises:
      InputError: the file is missing, of another kind, damaged or pickled; a layer is missing,
        has another shape or has numbers that are not finite; fc6 does not fit the image size;
        or h5py is not installed.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"pretrained must end in {', '.join(_READERS)}, got {path}")
    if not path.is_file():
        state = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"pretrained {path} {state}")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        contents = reader(path)
    except InputError:
        raise
    except Exception as error:  # On damaged files the libraries raise all kinds of exceptions.
        raise InputError(f"pretrained {path} cannot be read: {one_line(error)}") from error
    has_top = any(name in contents.arrays for name in _TOP)
    if has_top and image_size != IMAGE_SIZE:
        raise InputError(
            f"image_size must be {IMAGE_SIZE} for {path}, whose fc6 fits no other, got "
            f"{image_size}; weights without fc6 and fc7 (notop) fit any"
        )
    layers = {}
    for name, shape in _kernel_shapes(image_size, _TOP if has_top else ()).items():
        if name not in contents.arrays:
            raise InputError(f"pretrained {path} has no layer {name}")
        layers[name] = _layer(f"pretrained {path}: {name}", contents.arrays.pop(name), shape)
    if contents.channels == "BGR":
        first = layers["conv1_1"]
        first["kernel"] = np.ascontiguousarray(first["kernel"][:, :, ::-1])
    return Pretrained(path.name, digest, layers)


def _kernel_shapes(image_size: int, top: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of Model B's kernels: those of the convolutions and of `top`."""
    example = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    model = VGG16(num_classes=2)
    params = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    names = [name for name in params if name.startswith("conv") or name in top]
    return {name: params[name]["kernel"].shape for name in sorted(names)}


def _layer(
    name: str, arrays: list[NumpyArray], shape: tuple[int, ...]
) -> dict[str, NumpyArray]:
    """A layer's kernel and bias, distinguished by their rank, after checking them."""
    by_rank = sorted(arrays, key=np.ndim)
    if [min(array.ndim, 2) for array in by_rank] != [1, 2]:
        found = " and ".join(str(array.shape) for array in arrays) or "nothing"
        raise InputError(f"{name} must be a kernel and a bias, got {found}")
    bias, kernel = by_rank
    if len(shape) == 2:  # A dense layer may be stored as a convolution over its whole input.
        kernel = kernel.reshape(-1, kernel.shape[-1])
    for what, array, expected in (("kernel", kernel, shape), ("bias", bias, shape[-1:])):
        if array.shape != expected:
            raise InputError(f"{name} must have a {what} {expected}, got {array.shape}")
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{name} must have a {what} of floats, got {array.dtype}")
    with np.errstate(over="ignore"):
        pair = (np.ascontiguousarray(array, np.float32) for array in (kernel, bias))
        layer = dict(zip(("kernel", "bias"), pair, strict=True))
    if not all(np.isfinite(array).all() for array in layer.values()):
        raise InputError(f"{name} must be finite, got NaN or infinity")
    return layer


def _read_keras(path: Path) -> _Contents:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"pretrained {path} needs h5py: pip install 'deid_jax[vggface]', or give an .npz"
        ) from error

    arrays: dict[str, list[NumpyArray]] = {}

    def take(name: str, item: object) -> None:
        layer = name.partition("/")[0]
        if isinstance(item, h5py.Dataset) and _LAYER.fullmatch(layer):
            arrays.setdefault(layer, []).append(np.asarray(item[()]))

    with h5py.File(path, "r") as file:
        # In the file of a whole model, the weights are one group further down.
        file.get("model_weights", file).visititems(take)
    return _Contents(arrays, "BGR")


def _read_matconvnet(path: Path) -> _Contents:
    import scipy.io

    try:
        top = scipy.io.loadmat(
            path,
            variable_names=["net", "layers", "meta", "normalization"],
            struct_as_record=False,
            squeeze_me=True,
        )
    except NotImplementedError as error:
        raise InputError(
            f"pretrained {path} is of MATLAB 7.3: save it in MATLAB with the option -v7"
        ) from error
    net = top.get("net", types.SimpleNamespace(**top))
    _check_mean(path, net)
    arrays = {}
    for layer in np.atleast_1d(getattr(net, "layers", [])):
        name = str(getattr(layer, "name", ""))
        pair = getattr(layer, "weights", None)
        if pair is None and hasattr(layer, "filters"):
            pair = [layer.filters, getattr(layer, "biases", ())]
        if pair is not None and _LAYER.fullmatch(name):
            arrays[name] = [np.asarray(array) for array in pair]
    return _Contents(arrays, "RGB")


def _check_mean(path: Path, net: object) -> None:
    """Refuses a network trained on other images: the one for ImageNet has the same layers."""
    for place in (getattr(net, "meta", None), net):
        average = getattr(getattr(place, "normalization", None), "averageImage", None)
        if average is None or np.size(average) == 0:
            continue
        mean = np.reshape(average, (-1, np.shape(average)[-1])).mean(axis=0)
        if mean.shape != (3,) or not np.allclose(mean, VGG_FACE_MEAN, atol=1):
            raise InputError(
                f"pretrained {path} is not VGG-Face's: its averageImage is "
                f"{np.round(mean, 2).tolist()}, not {list(VGG_FACE_MEAN)}"
            )


def _read_npz(path: Path) -> _Contents:
    if not zipfile.is_zipfile(path):
        raise InputError(f"pretrained {path} cannot be read: it is no .npz archive")
    arrays: dict[str, list[NumpyArray]] = {}
    with np.load(path, allow_pickle=False) as file:
        channels = str(file["channels"]) if "channels" in file.files else "RGB"
        for key in file.files:
            if layer := _LAYER.match(key):
                arrays.setdefault(layer[0], []).append(file[key])
    if channels not in ("RGB", "BGR"):
        raise InputError(f"pretrained {path}: channels must be RGB or BGR, got {channels}")
    return _Contents(arrays, channels)


_READERS = {".h5": _read_keras, ".mat": _read_matconvnet, ".npz": _read_npz}
