"""effllm: reproducible research on efficient language models.

This package is an import root of links; the code lives in the folders `modules`, `pipelines`,
`kernels` and `conf` at the top of the repository. Import `effllm.…` only: a file imported under
two names yields two different classes.
"""

__version__ = "0.1.0"
