"""What others' code does for the same scans: a module for each operation, a class for each way to compute it.

- `selective`: the selective scan of Mamba.
- `ssd`: the chunked scan of Mamba-2.
- `ttt`: test-time-training layers, linear and MLP.
- `ggml`: ggml's operator, called from its shared libraries where they are found.

`rows(arrays, passes)` of a module gives the rows that are installed here and take those arrays. `check`
holds every row against a result in float64; a row that differs is an error and is never timed.
"""
