"""Errors that a person can act on.

Every failure that a user can cause or repair is one of these. The message names the stage, layer
or file, what was expected, what was found, and the next step. The command line prints them on one
line each and exits with 1; anything else is a defect, and its traceback is in the run's log.
"""


class EffLLMError(Exception):
    """Base of all errors that effllm raises on purpose."""


class ConfigError(EffLLMError):
    """A configuration that cannot be right: unknown key, value out of range, missing part."""


class GraphError(EffLLMError):
    """Stages that do not fit together: unknown input, cycle, wrong artifact kind."""


class ArtifactError(EffLLMError):
    """A stored result that is missing, damaged, or cannot be written."""


class UnsupportedModelError(EffLLMError):
    """A model whose structure a method cannot handle."""


class NumericalError(EffLLMError):
    """Values that are not finite, or a system that could not be solved."""


class DataError(EffLLMError):
    """A model or text that is missing, unreachable, too short, or not what was declared."""
