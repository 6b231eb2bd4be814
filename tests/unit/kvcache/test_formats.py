"""Bytes by formula, rounding errors, and cutting and joining segments."""

import subprocess
import sys
import textwrap

import pytest
import torch
from cache_methods import FORMATS

from effllm.modules.kvcache.formats.integers import ChannelIntegers, TokenIntegers
from effllm.modules.kvcache.formats.pruned_values import PrunedValues
from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.kvcache.formats.think import ThinkKeys
from effllm.modules.kvcache.quantisation import (
    dequantise_rows,
    pack_codes,
    quantise_rows,
    unpack_codes,
)
from effllm.modules.kvcache.segment import stored_bytes


def states_of(channels=64, tokens=96, dtype=torch.float16, seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, tokens, channels, generator=generator).to(dtype)


@pytest.mark.parametrize("form", FORMATS, ids=str)
@pytest.mark.parametrize("channels", [64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_bytes_are_those_of_the_formula(form, channels, dtype):
    states = states_of(channels, dtype=dtype)
    held = form.encode(states, torch.ones(2, 3, channels))
    wanted = 6 * (96 * form.row_bytes(channels, dtype.itemsize) + form.head_bytes(channels))
    assert stored_bytes(held.tensors()) == wanted


@pytest.mark.parametrize(
    ("channels", "width", "ratio", "wanted"),
    [
        *((64, 2, 0.5, 82), (64, 2, 0.8, 44), (64, 4, 0.5, 146), (64, 4, 0.8, 70)),
        *((128, 2, 0.5, 162), (128, 2, 0.8, 86), (128, 4, 0.7, 190), (128, 2, 0.7, 112)),
    ],
)
def test_bytes_of_the_specifications_table(channels, width, ratio, wanted):
    assert SparkKeys(ratio=ratio).row_bytes(channels, width) == wanted


@pytest.mark.parametrize(
    ("channels", "ratio", "bits", "wanted"), [(64, 0.5, 8, 54), (64, 0.8, 4, 29), (128, 0.8, 4, 51)]
)
def test_bytes_with_rounded_values(channels, ratio, bits, wanted):
    assert SparkKeys(ratio=ratio, bits=bits).row_bytes(channels, 2) == wanted


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_nothing_stored_is_a_view_of_something_larger(form):
    states = states_of()
    held = form.encode(states[:, :, 8:72], torch.ones(2, 3, 64))
    for tensor in held.tensors():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert tensor.untyped_storage().data_ptr() != states.untyped_storage().data_ptr()


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_any_run_of_tokens_can_be_rebuilt(form):
    states = states_of(tokens=75)
    held = form.encode(states, torch.rand(2, 3, 64, generator=torch.Generator().manual_seed(1)))
    whole = form.decode(held, 0, 75)
    assert whole.shape == states.shape
    for start, stop in ((0, 10), (31, 33), (40, 75), (74, 75)):
        assert torch.equal(form.decode(held, start, stop), whole[:, :, start:stop])


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_scores_and_mixtures_are_those_of_the_rebuilt_states(form):
    """Over more than one block; the kernels' sums have another order."""
    generator = torch.Generator().manual_seed(2)
    states = states_of(channels=16, tokens=700, dtype=torch.float32)
    held = form.encode(states, torch.rand(2, 3, 16, generator=generator))
    whole = form.decode(held, 0, 700).float()
    query = torch.randn(2, 3, 5, 16, generator=generator)
    weights = torch.rand(2, 3, 5, 700, generator=generator).softmax(dim=-1)
    torch.testing.assert_close(form.scores(held, query), query @ whole.mT, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(form.mixture(held, weights), weights @ whole, atol=1e-5, rtol=1e-5)


# The importance of values looks at the other tokens of the segment.
@pytest.mark.parametrize(
    "form", [one for one in FORMATS if one.per_token and not isinstance(one, PrunedValues)], ids=str
)
def test_cut_and_joined_segments_hold_the_same_tokens(form):
    states, weight = states_of(tokens=20), torch.ones(2, 3, 64)
    held = form.encode(states, weight)
    rest = form.encode(states[:, :, 12:], weight, held.head or None)
    joined = held.first(12).joined(rest)
    assert torch.equal(form.decode(joined, 0, 20), form.decode(held, 0, 20))


@pytest.mark.parametrize("channels", [12, 36, 80])
def test_head_sizes_that_are_no_multiple_of_eight(channels):
    states = states_of(channels, tokens=5)
    for form in FORMATS:
        held = form.encode(states, torch.ones(2, 3, channels))
        assert form.decode(held, 0, 5).shape == states.shape


@pytest.mark.parametrize("tokens", [0, 1])
def test_prompts_of_no_token_and_of_one(tokens):
    states = states_of(tokens=tokens)
    for form in FORMATS:
        held = form.encode(states, torch.ones(2, 3, 64))
        assert held.tokens == tokens and form.decode(held, 0, tokens).shape == states.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_ratio_of_zero_is_no_compression(dtype):
    states = states_of(dtype=dtype)
    form = SparkKeys(ratio=0.0)
    found = form.decode(form.encode(states, torch.rand(2, 3, 64)), 0, 96)
    assert found.dtype == dtype and torch.equal(found, states)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_survive_packing(bits):
    codes = torch.randint(0, 2**bits, (5, 13), generator=torch.Generator().manual_seed(0))
    packed = pack_codes(codes.to(torch.uint8), bits)
    assert packed.shape[-1] == -(-13 * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, 13).long(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_off_by_half_a_step(bits):
    rows = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    packed, span = quantise_rows(rows, bits)
    found = dequantise_rows(packed, span, bits, 40)
    step = span[:, 1:].float()
    assert ((found - rows).abs() <= 0.5 * step + 2e-3).all()  # 2e-3: low and step have 16 bits
    assert (step[:, 0] <= 1.01 * (rows.amax(-1) - rows.amin(-1)) / (2**bits - 1) + 2e-3).all()


def test_constant_rows_are_kept():
    rows = torch.full((2, 9), 1.5)
    assert torch.equal(dequantise_rows(*quantise_rows(rows, 4), 4, 9), rows)


def test_other_numbers_of_bits_are_refused():
    for wrong in (lambda: TokenIntegers(bits=5), lambda: ChannelIntegers(bits=16)):
        with pytest.raises(ValueError, match="bits"):
            wrong()
    with pytest.raises(ValueError, match="share"):
        ThinkKeys(share=0.0)


def test_pruned_values_keep_the_mean_of_what_they_lose():
    states = states_of(dtype=torch.float32)
    form = PrunedValues(ratio=0.5)
    found = form.decode(form.encode(states, torch.ones(2, 3, 64)), 0, 96)
    torch.testing.assert_close(found.sum(dim=-1), states.sum(dim=-1))
    assert ((found == states).sum(dim=-1) >= 32).all()


def test_process_memory_falls_by_what_the_formula_says():
    """The keys of ten layers of 3 heads of 64 channels, 8,192 tokens, in a process of its own."""
    code = """
        import ctypes, gc, sys
        import torch
        from effllm.modules.kvcache.formats.base import Dense
        from effllm.modules.kvcache.formats.spark import SparkKeys

        def resident():
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        torch.set_num_threads(1)
        weight = torch.ones(1, 3, 64)
        states = torch.randn(1, 3, 8192, 64).half()
        form = {"dense": Dense(), "spark": SparkKeys(ratio=0.8)}[sys.argv[1]]
        form.encode(states, weight)  # what the first call loads is not the cache's
        before = resident()
        held = [form.encode(states, weight) for _ in range(10)]
        print(resident() - before)
    """
    grown = {}
    for name in ("dense", "spark"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), name], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        grown[name] = int(done.stdout)
    rows = 10 * 3 * 8192
    assert grown["dense"] == pytest.approx(rows * 128, rel=0.1)
    assert grown["spark"] == pytest.approx(rows * 44, rel=0.1)
