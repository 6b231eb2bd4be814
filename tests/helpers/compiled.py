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


@pytest.fixture(params=["native", "x86-64"])
def any_processor(request, monkeypatch):
    """Code for this processor, and for one without its special instructions."""
    if request.param not in ("native", platform.machine().replace("_", "-")):
        pytest.skip("another kind of processor")
    flags = [one for one in native._FLAGS if "-march" not in one]
    monkeypatch.setattr(native, "_FLAGS", (*flags, f"-march={request.param}"))
