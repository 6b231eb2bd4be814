"""Tries built by hand."""

import torch

from effllm.modules.arbitration.branches import COUNTS, Branches
from effllm.modules.arbitration.observations import FEATURES


def world(features, right):
    """Problems with one decision each.

    Args:
        features: (N,) the only feature that varies, the first.
        right: (N, 2) verdicts by action.
    """
    count = len(features)
    observations = torch.zeros(count, len(FEATURES))
    observations[:, 0] = features
    numbers = torch.arange(count)
    counts = torch.ones(2 * count, len(COUNTS), dtype=torch.long)
    counts[:, COUNTS.index("accepted")] = torch.tensor([0, 1]).repeat(count)
    return Branches(
        roots=numbers,
        problem=numbers,
        depth=torch.zeros(count, dtype=torch.long),
        children=-1 - torch.arange(2 * count).view(count, 2),
        observations=observations,
        tokens=torch.zeros(count, 3, dtype=torch.long),
        position=torch.zeros(count, dtype=torch.long),
        right=right.flatten().bool(),
        answer=torch.arange(2 * count),
        counts=counts,
        outputs=torch.ones(2 * count, 1, dtype=torch.long),
    )


def comb(depth, seed=0):
    """One problem, `depth` decisions on every path, random verdicts and observations."""
    generator = torch.Generator().manual_seed(seed)
    nodes = 2**depth - 1
    children = torch.arange(1, 2 * nodes + 1).view(nodes, 2)
    children = torch.where(children < nodes, children, -1 - (children - nodes))
    leaves = nodes + 1
    observations = torch.zeros(nodes, len(FEATURES))
    observations[:, :2] = torch.randn(nodes, 2, generator=generator)
    counts = torch.ones(leaves, len(COUNTS), dtype=torch.long)
    counts[:, COUNTS.index("decisions")] = depth
    counts[:, COUNTS.index("accepted")] = torch.tensor([one.bit_count() for one in range(leaves)])
    return Branches(
        roots=torch.tensor([0]),
        problem=torch.zeros(nodes, dtype=torch.long),
        depth=torch.arange(1, nodes + 1).float().log2().long(),
        children=children,
        observations=observations,
        tokens=torch.zeros(nodes, 3, dtype=torch.long),
        position=torch.zeros(nodes, dtype=torch.long),
        right=torch.rand(leaves, generator=generator) < 0.4,
        answer=torch.arange(leaves),
        counts=counts,
        outputs=torch.ones(leaves, 1, dtype=torch.long),
    )
