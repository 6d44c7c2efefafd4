"""The paper's tables, run anew: published numbers, arms and controls, seeds, and what the differences say.

`abn reproduce` is its command; `conduct.reproduce`, `groups.read_groups`, `results.table_rows` and `results.studies`
are the same from Python.
"""
