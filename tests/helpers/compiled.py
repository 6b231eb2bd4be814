"""What tests of compiled code share."""

import platform

import pytest

from effllm.kernels import native


def _missing() -> str:
    try:
        native.load_library("packed_keys.cpp")
    except native.NoCompilerError as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(_missing()), reason=_missing())


plain_x86 = pytest.param(
    "x86-64",
    marks=pytest.mark.skipif(
        platform.machine() != "x86_64", reason="-march=x86-64 is for x86-64 processors"
    ),
)


@pytest.fixture(params=["native", plain_x86])
def any_processor(request, monkeypatch):
    """Code for this processor, and for one without its special instructions."""
    flags = [one for one in native._FLAGS if "-march" not in one]
    monkeypatch.setattr(native, "_FLAGS", (*flags, f"-march={request.param}"))
