"""Recognisers' public weights by name: where they are, whose they are, how they are checked.

Nothing of them comes with this project. `fetch` downloads a file once, into a folder of the
user's, and shows its licence and citation when it does; the file's SHA-256 is checked at every
use. A new set of weights is one row of `WEIGHTS`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from deid_jax.errors import InputError
from deid_jax.recognisers import downloading


class Weights(NamedTuple):
    """A published file of weights.

    Attributes:
      what: what it is, in a line.
      url: where it is, https.
      sha256: of the file; None where no source states one, and the user must.
      size: of the file in bytes; None where no source states it.
      licence: the terms that its publisher states.
      citation: whom to cite.
      converter: "module:function", imported when used, which tells whose weights they are: of
        `deid_jax.recognisers.embedders.CONVERTERS` for recognisers that compare embeddings, and else takes
        the file's path and gives what `experiments.train --pretrained` starts from.
    """

    what: str
    url: str
    sha256: str | None
    size: int | None
    licence: str
    citation: str
    converter: str


_MOBILEFACENET = (
    "S. Chen, Y. Liu, X. Gao, Z. Han, MobileFaceNets: Efficient CNNs for Accurate Real-Time "
    "Face Verification on Mobile Devices, CCBR 2018, arXiv:1804.07573"
)
_VGG_FACE = "O. M. Parkhi, A. Vedaldi, A. Zisserman, Deep Face Recognition, BMVC 2015"
# As earlier READMEs of keras-vggface quote www.robots.ox.ac.uk/~vgg/software/vgg_face.
_VGG_FACE_LICENCE = "non-commercial research, Creative Commons Attribution (Oxford VGG)"
_KERAS_VGGFACE = "https://github.com/rcmalli/keras-vggface/releases/download/v2.0"

WEIGHTS = {
    "mobilefacenet_ms1m": Weights(
        what="MobileFaceNet of foamliu/MobileFaceNet, trained on refined MS-Celeb-1M",
        # The same file, by hash and size, as mobilefacenet.pt of that project's release v1.0.
        url=(
            "https://raw.githubusercontent.com/foamliu/MobileFaceNet/"
            "a6cc9032a659b615f477833e1a70b5e7931bcccc/weights/mobilefacenet.pt"
        ),
        sha256="90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4",
        size=4_135_271,
        licence="Apache-2.0",
        citation=f"{_MOBILEFACENET}; github.com/foamliu/MobileFaceNet",
        converter="deid_jax.models.mobilefacenet:convert",
    ),
    "mobilefacenet_casia": Weights(
        what="MobileFaceNet of Xiaoccer/MobileFaceNet_Pytorch, trained on CASIA-WebFace",
        url=(
            "https://raw.githubusercontent.com/Xiaoccer/MobileFaceNet_Pytorch/"
            "26bd8d262017e472a3c7f56d62929e2138a70aeb/model/best/068.ckpt"
        ),
        sha256="e839247cdbdfc023fb7cadeaf53a4549d50c8fc24ad154c02e35920ea8910d99",
        size=None,
        licence="none stated",
        citation=f"{_MOBILEFACENET}; github.com/Xiaoccer/MobileFaceNet_Pytorch",
        converter="deid_jax.models.mobilefacenet:convert",
    ),
    # Neither keras-vggface nor its users state hashes of these two files.
    "vggface_vgg16": Weights(
        what="VGG-Face, 2622 persons: VGG-16 for Keras, from the original Caffe network",
        url=f"{_KERAS_VGGFACE}/rcmalli_vggface_tf_vgg16.h5",
        sha256=None,
        size=None,
        licence=_VGG_FACE_LICENCE,
        citation=f"{_VGG_FACE}; github.com/rcmalli/keras-vggface",
        converter="deid_jax.recognisers.vggface_files:load_vggface",
    ),
    "vggface_vgg16_notop": Weights(
        what="VGG-Face without its dense layers: VGG-16 for Keras",
        url=f"{_KERAS_VGGFACE}/rcmalli_vggface_tf_notop_vgg16.h5",
        sha256=None,
        size=None,
        licence=_VGG_FACE_LICENCE,
        citation=f"{_VGG_FACE}; github.com/rcmalli/keras-vggface",
        converter="deid_jax.recognisers.vggface_files:load_vggface",
    ),
    # The Oxford page itself packs vgg_face.mat in vgg_face_matconvnet.tar.gz; this is the bare
    # file of MatConvNet, by the same group. Its documentation (doc/site/docs/pretrained.md of
    # github.com/vlfeat/matconvnet) states MD5s alone, one for each of its versions, at the
    # last 27e94d9979dad2385f901f0c360cf3bc.
    "vgg_face_mat": Weights(
        what="VGG-Face, 2622 persons: the authors' VGG-16 for MatConvNet",
        url="https://www.vlfeat.org/matconvnet/models/vgg-face.mat",
        sha256=None,
        size=None,
        licence=_VGG_FACE_LICENCE,
        citation=_VGG_FACE,
        converter="deid_jax.recognisers.vggface_files:load_vggface",
    ),
}


def to_stderr(line: str) -> None:
    """Shows a line to the user."""
    print(line, file=sys.stderr)


def fetch(
    name: str,
    *,
    cache_dir: Path | None = None,
    sha256: str | None = None,
    show: Callable[[str], None] = to_stderr,
    progress: downloading.Progress = downloading.no_progress,
) -> Path:
    """The file of a row of `WEIGHTS`, downloaded if it is not there yet.

    A file that is there is used without network. If it is not what it was, it is fetched anew;
    where only the user says what it should be, that is an error and the file stays.

    Args:
      name: a key of `WEIGHTS`.
      cache_dir: where files are kept; by default $DEID_JAX_CACHE, or deid_jax/weights in
        $XDG_CACHE_HOME or ~/.cache.
      sha256: of the file; needed where the table has none.
      show: takes the lines on source, licence and citation, before a download.
      progress: see `deid_jax.recognisers.downloading.download`.

    Returns:
      The file, whose SHA-256 is right.

    Raises:
      InputError: no such row; `sha256` is missing, malformed or not the table's; the file
        cannot be fetched, kept or read, or is another.
    """
    row, expected = _row(name), _expected(name, sha256)
    folder = Path(cache_dir) if cache_dir is not None else default_cache()
    path = folder / f"{name}{Path(urlsplit(row.url).path).suffix}"
    try:
        found = downloading.digest(path) if path.is_file() else None
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror}") from error
    if found == expected:
        return path
    if found is not None and row.sha256 is None:
        raise InputError(
            f"weights {path} have the SHA-256 {found} instead of {expected}: "
            "correct --sha256, or delete the file to download it again"
        )
    if found is not None:
        show(f"{path} is damaged and downloaded again")
    for line in (f"{name}: {row.what}", f"from {row.url}", f"licence: {row.licence}"):
        show(line)
    show(f"please cite: {row.citation}")
    downloading.download(row.url, path, sha256=expected, size=row.size, progress=progress)
    return path


def default_cache() -> Path:
    """The folder that files are kept in.

    Raises:
      InputError: the user has no home and names no folder.
    """
    if os.environ.get("DEID_JAX_CACHE"):
        return Path(os.environ["DEID_JAX_CACHE"])
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise InputError("there is no home folder: set DEID_JAX_CACHE to a folder") from error
    return home / "deid_jax" / "weights"


def _row(name: str) -> Weights:
    if name not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {name}")
    return WEIGHTS[name]


def _expected(name: str, sha256: str | None) -> str:
    """The hash that the file must have."""
    known = WEIGHTS[name].sha256
    if sha256 is None:
        if known is None:
            raise InputError(
                f"weights {name}: no source states the file's SHA-256, so give the one of a "
                "copy that you trust, --sha256=..."
            )
        return known
    downloading.check_sha256(sha256)
    if known not in (None, sha256.lower()):
        raise InputError(f"sha256 of {name} is {known}, got {sha256}")
    return sha256.lower()
