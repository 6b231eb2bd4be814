"""Every format of a cache and every way to evict, for all tests; a new one is an entry here."""

from effllm.modules.kvcache.eviction.base import Budget
from effllm.modules.kvcache.eviction.expected_attention import ExpectedAttention
from effllm.modules.kvcache.eviction.methods import KeyNorm, SnapKV, StreamingLLM, Tova
from effllm.modules.kvcache.formats.base import Dense
from effllm.modules.kvcache.formats.integers import ChannelIntegers, TokenIntegers
from effllm.modules.kvcache.formats.pruned_values import PrunedValues
from effllm.modules.kvcache.formats.spark import SparkKeys
from effllm.modules.kvcache.formats.think import ThinkKeys

FORMATS = [
    Dense(),
    SparkKeys(ratio=0.5),
    SparkKeys(ratio=0.8, centred=False),
    SparkKeys(ratio=0.8, recovery="zero"),
    SparkKeys(ratio=0.8, recovery="constant"),
    SparkKeys(ratio=0.8, signed=False),
    SparkKeys(ratio=0.8, bits=4),
    SparkKeys(ratio=0.5, bits=8),
    ThinkKeys(share=0.344),
    PrunedValues(ratio=0.5),
    TokenIntegers(bits=8),
    TokenIntegers(bits=4),
    TokenIntegers(bits=3),
    ChannelIntegers(bits=4),
    ChannelIntegers(bits=3, group=16),
]

HALF = Budget(share=0.5)
EVICTIONS = [
    StreamingLLM(budget=HALF),
    SnapKV(budget=HALF, observed=4),
    SnapKV(budget=HALF, observed=4, beta=20.0),
    Tova(budget=HALF),
    KeyNorm(budget=HALF),
    ExpectedAttention(budget=HALF),
]
