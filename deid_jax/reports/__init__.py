"""Reports: tables, figures and HTML of finished runs.

Imports `evaluation` and what is below.
"""
