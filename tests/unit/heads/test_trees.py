"""Trees: the best of a size, by brute force; what a tree accepts, by walking it."""

from itertools import combinations

import numpy as np
import pytest
import torch

from effllm.modules.heads.trees import accepted_depths, optimal_tree, tree_parents


def random_ranks(positions=60, heads=3, most=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(positions, heads, generator=generator) ** 3 * most).int()


def walked(ranks, tree):
    """Accepted guesses by walking from the root, child by child."""
    depths = []
    for row in ranks.tolist():
        node = ()
        while any(child == (*node, *row[len(node) : len(node) + 1]) for child in tree) and len(
            node
        ) < len(row):
            node = tuple(row[: len(node) + 1])
        depths.append(len(node))
    return np.array(depths)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_other_tree_of_the_size_accepts_more(nodes, seed):
    ranks = random_ranks(positions=30, heads=2, most=3, seed=seed)
    everything = [(i,) for i in range(3)] + [(i, j) for i in range(3) for j in range(3)]
    best = max(
        accepted_depths(ranks, tree).sum()
        for tree in combinations(everything, nodes)
        if all(node[:-1] in tree for node in tree if len(node) > 1)
    )
    assert accepted_depths(ranks, optimal_tree(ranks, nodes, 3)).sum() == best


def test_tokens_per_pass_are_those_of_a_walk_and_grow_ever_more_slowly():
    ranks = random_ranks()
    sizes = range(1, 25)
    trees = [optimal_tree(ranks, count, 5) for count in sizes]
    for tree in trees:
        assert np.array_equal(accepted_depths(ranks, tree), walked(ranks, tree))
    gains = np.diff([0.0, *(accepted_depths(ranks, tree).mean() for tree in trees)])
    assert (gains >= 0).all() and (np.diff(gains) <= 1e-12).all()


def test_larger_trees_contain_smaller_ones_and_parents_come_first():
    ranks = random_ranks(seed=3)
    small, large = (optimal_tree(ranks, count, 5) for count in (8, 20))
    assert large[:8] == small
    parents = tree_parents(large)
    for node, parent in zip(large, parents, strict=True):
        assert node[:-1] == (large[parent] if parent >= 0 else ())
        assert parent < large.index(node)


def test_ranks_beyond_the_widest_count_as_wrong():
    ranks = torch.tensor([[0, 0], [7, 0], [7, 0], [7, 1]])
    assert optimal_tree(ranks, 9, 5) == [(0,), (0, 0)]
    assert optimal_tree(ranks, 2, 8) == [(7,), (7, 0)]


def test_a_child_before_its_parent_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\] comes before its parent"):
        tree_parents([(1,), (0, 1), (0,)])
