"""Packed rows: exact round trips, bytes in tables, and the Triton kernels in the interpreter."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from compiled import any_processor, needs_compiler  # noqa: F401

from effllm.kernels import packed_keys as packed
from effllm.modules.kvcache.selection import keep_largest

SHAPES = [(8, 3), (12, 5), (36, 36), (64, 13), (80, 1), (96, 40), (128, 26)]


def rows_of(channels, kept, tokens=7, heads=2, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(heads, tokens, channels, generator=generator).to(dtype)
    keep = keep_largest(keys.float().abs(), kept)
    gain = torch.rand(heads, tokens, generator=generator)
    unit = torch.rand(heads, channels, generator=generator) + 0.5
    return keys, keep, gain, unit


@pytest.mark.parametrize(("channels", "kept"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_round_trip_gives_the_formula_bit_for_bit(channels, kept, dtype):
    keys, keep, gain, unit = rows_of(channels, kept, dtype=dtype)
    values, mask, sign = packed.pack_rows_reference(keys, keep, kept)
    assert values.shape == (2, 7, kept) and mask.shape[-1] == -(-channels // 8)
    again = packed.unpack_rows_reference(values, mask, sign, gain, unit)
    signs = torch.where(keys < 0, -1.0, 1.0)
    recovered = signs * unit.unsqueeze(1) * gain.unsqueeze(-1)
    assert torch.equal(again, torch.where(keep, keys.float(), recovered))


@pytest.mark.parametrize("channels", [8, 12, 36, 64])
def test_bits_beyond_the_last_channel_are_zero(channels):
    full = packed.pack_bits(torch.ones(3, channels, dtype=torch.bool))
    flags = packed.unpack_flags(full, 8 * full.shape[-1])
    assert flags[:, :channels].all() and not flags[:, channels:].any()


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens):
    keys, keep, gain, unit = rows_of(16, 4, tokens=tokens)
    values, mask, sign = packed.pack_rows_reference(keys, keep, 4)
    again = packed.unpack_rows_reference(values, mask, sign, gain, unit)
    assert again.shape == (2, tokens, 16)


def test_rows_may_lie_in_memory_in_any_order():
    keys, keep, _, _ = rows_of(16, 4, tokens=6)
    turned = keys.mT.contiguous().mT
    for one, other in zip(
        packed.pack_rows_reference(turned, keep, 4),
        packed.pack_rows_reference(keys, keep, 4),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("channels", "kept"), [(8, 3), (12, 5), (64, 13), (96, 40)])
def test_scores_are_those_of_built_keys(channels, kept):
    keys, keep, gain, unit = rows_of(channels, kept, tokens=33)
    query = torch.randn(2, 3, channels, generator=torch.Generator().manual_seed(1))
    stored = (*packed.pack_rows_reference(keys, keep, kept), gain, unit)
    expected = packed.packed_scores_reference(query, *stored)
    direct = (
        query
        @ torch.where(
            keep, keys, torch.where(keys < 0, -1.0, 1.0) * unit.unsqueeze(1) * gain.unsqueeze(-1)
        ).mT
    )
    torch.testing.assert_close(expected, direct)
    stored = (*stored[:3], gain.half(), unit)
    expected = packed.packed_scores_reference(query, *stored)
    torch.testing.assert_close(packed.packed_scores(query, *stored), expected)


@needs_compiler
@pytest.mark.usefixtures("any_processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "kept", "tokens", "group"),
    [
        (8, 3, 5, 1),
        (12, 5, 33, 3),
        (64, 13, 300, 3),
        (96, 40, 16, 9),
        (128, 128, 31, 24),
        (64, 1, 1, 2),
        (64, 20, 0, 3),
    ],
)
def test_compiled_code_equals_the_reference(channels, kept, tokens, group, dtype):
    keys, keep, gain, unit = rows_of(channels, kept, tokens=tokens, dtype=dtype)
    dice = torch.Generator().manual_seed(1)
    query = torch.randn(group, 2, channels, generator=dice).transpose(0, 1)  # not contiguous
    half = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
    stored = (*packed.pack_rows_reference(keys, keep, kept), gain.to(half), unit)
    torch.testing.assert_close(
        packed.packed_scores_native(query, *stored),
        packed.packed_scores_reference(query, *stored),
        rtol=1e-5,
        atol=1e-4,
    )
    weights = torch.rand(2, group, tokens + 3, generator=dice)[..., 3:]
    values = torch.randn(2, tokens, 64, generator=dice).to(dtype)
    torch.testing.assert_close(
        packed.weighted_sum_native(weights, values), weights @ values.float(), rtol=1e-5, atol=1e-4
    )


@needs_compiler
def test_every_finite_half_is_widened_exactly():
    codes = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    finite = codes[codes.isfinite()].view(1, -1, 16)
    weights = torch.ones(1, 1, 1)
    for row in finite[0].split(1):
        assert torch.equal(packed.weighted_sum_native(weights, row[None])[0, 0], row[0].float())


def test_the_triton_kernels_equal_the_reference():
    """In a process of its own: the interpreter must be chosen before Triton is imported."""
    pytest.importorskip("triton", reason="Triton is an extra: pip install -e '.[gpu]'")
    code = """
        import sys
        sys.path[:0] = ["tests/kernels", "tests/helpers"]
        import torch
        from test_packed_keys import rows_of
        from effllm.kernels import packed_keys as packed
        for channels, kept, tokens in ((8, 3, 5), (12, 5, 33), (64, 13, 32), (36, 36, 1)):
            for dtype in (torch.float32, torch.float16):
                keys, keep, gain, unit = rows_of(channels, kept, tokens, dtype=dtype)
                keys = keys.mT.contiguous().mT
                expected = packed.pack_rows_reference(keys, keep, kept)
                for one, other in zip(packed.pack_rows_triton(keys, keep, kept), expected):
                    assert torch.equal(one, other), (channels, kept, tokens, dtype)
                query = torch.randn(2, 3, channels)
                stored = (*expected, gain.to(dtype), unit)
                torch.testing.assert_close(
                    packed.packed_scores_triton(query, *stored),
                    packed.packed_scores_reference(query, *stored),
                )
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
