"""Labeled Faces in the Wild: 30 of the 34 persons with at least 30 images, drawn by seed.

Gary B. Huang, Manu Ramesh, Tamara Berg, Erik Learned-Miller, "Labeled Faces in the Wild",
University of Massachusetts, Amherst, Technical Report 07-49, 2007. Images are 250x250, with
the face in the middle.
"""

from deid_jax.data import prepared
from deid_jax.data.dataset import DataOptions, FaceDataset

_ADVICE = (
    "; or download the images yourself and use --dataset=folder with --data_dir naming the"
    " folder of persons"
)


def load(options: DataOptions) -> FaceDataset:
    """Loads the subset that `deid_jax.data.selection.choose_subset` draws by `options.seed`.

    It is read from TFDS's `lfw` in `data_dir` (default ~/tensorflow_datasets), prepared on
    first use if TensorFlow is installed. `provenance["selection"]` is
    {person: [image, ...]} of all splits; images are named as in `deid_jax.data.prepared`.

    Raises:
      InputError: the data is missing and cannot be prepared, too few persons have 30 images,
        or as for `build_dataset`.
    """
    data = prepared.open_named("lfw", options.data_dir, _ADVICE)
    return prepared.load_subset("lfw", data, options)
