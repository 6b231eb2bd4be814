"""Static trees of guesses: which combinations of the heads' ranks are worth a place.

Heads whose guesses depend on the position alone have one *rank vector* per position: the rank that
each head gives to the true token. A node (r_1 .. r_j) is accepted exactly when it is a prefix of
that vector. So the best tree of N nodes holds the N prefixes that were met most often: no
assumption of independence, and no better tree on those positions.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from torch import Tensor

Node = tuple[int, ...]


def optimal_tree(ranks: Tensor, nodes: int, widest: int) -> list[Node]:
    """The tree that accepts most on the given positions.

    Args:
        ranks: (P, K) ranks of the true tokens, 0 = the head's first guess.
        nodes: nodes wanted; fewer if fewer prefixes were met.
        widest: guesses per head that are looked at; ranks from here on count as wrong.

    Returns:
        Rank tuples, the most frequent first, parents before children.

    Source: ours; Medusa (medusa/eval/gen_results.py) grows its tree by products of accuracies.
    """
    counts: Counter[Node] = Counter()
    for row in ranks.tolist():
        for depth, rank in enumerate(row, start=1):
            if rank >= widest:
                break
            counts[tuple(row[:depth])] += 1
    ranked = sorted(counts, key=lambda node: (-counts[node], len(node), node))
    return ranked[:nodes]


def accepted_depths(ranks: Tensor, tree: Sequence[Node]) -> np.ndarray:
    """Guesses that a tree would have had accepted at each position.

    Args:
        ranks: (P, K) as of `optimal_tree`.
        tree: rank tuples; with every node its parents.

    Returns:
        (P,) int; tokens per pass of the target are one more.
    """
    known = set(tree)
    depths = []
    for row in ranks.tolist():
        depth = 0
        while depth < len(row) and tuple(row[: depth + 1]) in known:
            depth += 1
        depths.append(depth)
    return np.array(depths, dtype=np.int64)


def tree_parents(tree: Sequence[Node]) -> list[int]:
    """Index of each node's parent, -1 for nodes of depth 1.

    Raises:
        ValueError: if a parent does not come before its child.
    """
    places: dict[Node, int] = {(): -1}
    parents = []
    for place, node in enumerate(tree):
        if node[:-1] not in places:
            raise ValueError(f"node {list(node)} comes before its parent")
        parents.append(places[node[:-1]])
        places[node] = place
    return parents
