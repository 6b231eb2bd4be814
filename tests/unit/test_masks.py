import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effllm.modules.sparsity.masks import (
    matrix_mask,
    nm_mask,
    pack_mask,
    row_mask,
    unpack_mask,
)
from effllm.modules.sparsity.patterns import Grouped, Unstructured


@given(st.sampled_from([(2, 4), (1, 4), (4, 8), (3, 5), (8, 16)]), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_every_group_keeps_its_best_entries(pattern, seed):
    keep, group = pattern
    # Few distinct values make many ties.
    score = torch.randint(0, 4, (7, 6 * group), generator=torch.Generator().manual_seed(seed))
    mask = nm_mask(score.float(), keep=keep, group=group).reshape(-1, group)
    for entries, kept in zip(score.reshape(-1, group).tolist(), mask.tolist(), strict=True):
        ranked = sorted(range(group), key=lambda place: (-entries[place], place))
        assert [place for place in range(group) if kept[place]] == sorted(ranked[:keep])


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (1, 130), (16, 9)])
def test_unstructured_counts_are_exact_even_with_ties(ratio, shape):
    score = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1)).float()
    rows = row_mask(score, ratio=ratio)
    assert (rows.sum(1) == shape[1] - int(shape[1] * ratio)).all()
    whole = matrix_mask(score, ratio=ratio)
    assert whole.sum() == score.numel() - int(score.numel() * ratio)
    kept, gone = score[whole], score[~whole]
    if len(kept) and len(gone):
        assert kept.min() >= gone.max()


def test_ties_go_to_the_lower_index():
    assert nm_mask(torch.ones(1, 8), keep=2, group=4).int().tolist() == [[1, 1, 0, 0] * 2]
    assert row_mask(torch.ones(1, 4), ratio=0.5).int().tolist() == [[1, 1, 0, 0]]


def test_groups_must_divide_the_inputs():
    with pytest.raises(ValueError, match="10 inputs do not divide into groups of 4"):
        nm_mask(torch.ones(2, 10), keep=2, group=4)
    with pytest.raises(ValueError, match="10 inputs do not divide into groups of 4"):
        Grouped(keep=2, group=4).check(10)


@pytest.mark.parametrize(("keep", "group"), [(0, 4), (4, 4), (5, 4)])
def test_patterns_refuse_impossible_counts(keep, group):
    with pytest.raises(ValueError, match="0 < keep < group"):
        Grouped(keep=keep, group=group)
    with pytest.raises(ValueError, match="ratio must be between"):
        Unstructured(ratio=1.5)


def test_pattern_names_count_zeros():
    assert Grouped(keep=1, group=4).name == "3:4"
    assert Unstructured(ratio=0.5).name == "50%"


@pytest.mark.parametrize("columns", [8, 13, 64])
def test_packing_masks_loses_nothing(columns, generator):
    mask = torch.rand(5, columns, generator=generator) > 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8 and packed.shape == (5, -(-columns // 8))
    assert torch.equal(unpack_mask(packed, columns), mask)
