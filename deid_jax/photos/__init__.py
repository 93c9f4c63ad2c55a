"""Photos: a file in, a protected file out.

Files, faces, aligned crops, the attack on them, verdicts, and a record of each file's outcome.
Imports `transfer` and the packages below it.
"""

from deid_jax.photos.detectors import load_detector
from deid_jax.photos.faces import Detector, Face, FaceChoice, parse_faces, read_faces
from deid_jax.photos.file_records import FaceReport, FaceVerdict, FileRecord
from deid_jax.photos.files import Photo, encode_photo, parse_photo
from deid_jax.photos.manifest import Manifest
from deid_jax.photos.protector import STRENGTHS, ProtectedPhoto, Protector, Strength
from deid_jax.photos.verifiers import Verifier, load_verifiers

__all__ = [
    "STRENGTHS",
    "Detector",
    "Face",
    "FaceChoice",
    "FaceReport",
    "FaceVerdict",
    "FileRecord",
    "Manifest",
    "Photo",
    "ProtectedPhoto",
    "Protector",
    "Strength",
    "Verifier",
    "encode_photo",
    "load_detector",
    "load_verifiers",
    "parse_faces",
    "parse_photo",
    "read_faces",
]
