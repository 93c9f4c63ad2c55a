"""Videos: frames, tracks, streams and sound; and folders of photos and videos.

Protects a video file frame by frame, and dispatches the files of a folder. Imports `photos` and
the packages below it.
"""

from deid_jax.videos.file_protector import FileProtector
from deid_jax.videos.inputs import content, folders, listed, with_gallery
from deid_jax.videos.video import VideoJob, VideoReport

__all__ = [
    "FileProtector",
    "VideoJob",
    "VideoReport",
    "content",
    "folders",
    "listed",
    "with_gallery",
]
