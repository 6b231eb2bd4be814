"""effllm: reproducible research on efficient language models.

This package is an import root of links; the code lives in the folders `modules`, `pipelines`,
`kernels` and `conf` at the top of the repository. Import `effllm.…` only: a file imported under
two names yields two different classes.
"""

from typing import Any

__version__ = "0.1.0"
_SHORTCUTS = ("prune", "compress_cache", "decoder")


def __getattr__(name: str) -> Any:
    """The shortcuts for notebooks; torch is imported when one is first asked for."""
    if name in _SHORTCUTS:
        from effllm.modules import shortcuts

        return getattr(shortcuts, name)
    raise AttributeError(f"module 'effllm' has no attribute {name!r}")
