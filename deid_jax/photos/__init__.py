"""Whole photos: files, faces in them, and their protection."""
