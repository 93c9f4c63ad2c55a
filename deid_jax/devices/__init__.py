"""Devices: meshes, processes, compiled programs, precision.

Everything that knows on what hardware a program runs. Imports nothing of the project but its
base modules (`arrays`, `checks`, `errors`, `pixels`, `types`).
"""
