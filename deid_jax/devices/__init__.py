"""Devices: meshes, processes, compiled programs, precision.

Everything that depends on the hardware. Imports nothing from the project except its base
modules (`arrays`, `checks`, `errors`, `pixels`, `types`).
"""
