"""Videos: frames, tracks, streams, sound.

Imports `photos` and what is below.
"""
