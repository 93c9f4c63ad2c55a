"""Photos: a file in, a protected file out.

Decoding, detection, alignment, protection, encoding, verdict, manifest. Imports `transfer` and
what is below.
"""
