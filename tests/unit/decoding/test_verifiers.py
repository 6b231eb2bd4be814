"""Verifiers against enumeration, brute force and their limits; no model is needed."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effllm.modules.decoding.records import Block
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.verifiers.chain import ChainTest
from effllm.modules.decoding.verifiers.ensemble import Ensemble
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.decoding.verifiers.fly import Fly, gate_measure, loosen
from effllm.modules.decoding.verifiers.margin import Margin
from effllm.modules.decoding.verifiers.mentored import Mentored, mentored_law
from effllm.modules.decoding.verifiers.typical import Typical
from effllm.modules.errors import ConfigError

DRAWN = Sampling(temperature=1.0)


def law(generator, *shape):
    return torch.softmax(2 * torch.randn(*shape, generator=generator), dim=-1)


def block_of(tokens, laws=None):
    return Block(list(tokens), laws)


def first_token_law(verifier, p, q, *, point, draws=40_000):
    """Empirical law of the first emitted token for one drafted token, (V,)."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(len(p))
    logits = torch.stack([p, p]).log()
    drafted = torch.multinomial(q, draws, replacement=True, generator=generator).tolist()
    for token in drafted:
        laws = None if point else q[None]
        decision = verifier.verify(block_of([token], laws), logits, generator)
        counts[token if decision.path else decision.next_token] += 1
    return counts / draws


@pytest.mark.parametrize("point", [False, True])
def test_exact_sampling_has_the_targets_law_by_enumeration(generator, point):
    """Sum over every draft and every accept branch: the first tokens follow p to 1e-6.

    The acceptance rule and the residual are taken from the verifier itself, the sum is ours.
    """
    size, length = 3, 2
    target = {
        context: law(generator, size).double()
        for n in range(length + 1)
        for context in itertools.product(range(size), repeat=n)
    }
    draft = {context: law(generator, size).double() for context in target}
    if point:  # a drafter that always proposes the same token
        draft = {c: torch.eye(size, dtype=torch.float64)[int(q.argmax())] for c, q in draft.items()}
    found = dict.fromkeys(itertools.product(range(size), repeat=length + 1), 0.0)

    def tail(prefix, weight):
        """The law of what the next rounds add is the target's: the rest of the horizon."""
        missing = length + 1 - len(prefix)
        for rest in itertools.product(range(size), repeat=missing):
            probability, context = weight, prefix
            for token in rest:
                probability *= float(target[context][token])
                context = (*context, token)
            found[prefix + rest] += probability

    for tokens in itertools.product(range(size), repeat=length):
        laws = [draft[tokens[:i]] for i in range(length)]
        weight = math.prod(float(q[t]) for q, t in zip(laws, tokens, strict=True))
        if not weight:
            continue
        rows = torch.stack([target[tokens[:i]] for i in range(length + 1)]).log()
        block = block_of(tokens, None if point else torch.stack(laws))
        test = ChainTest(block, rows, DRAWN, torch.Generator().manual_seed(0))
        for position in range(length):
            p, q = test.law[position].double(), laws[position]
            x = tokens[position]
            accept = min(1.0, float(p[x] / q[x]))
            residual = (p - q).clamp_min(0)
            if point:
                residual = p.clone()
                residual[x] = 0
            if accept < 1:
                residual = residual / residual.sum()
                for token in range(size):
                    tail(
                        (*tokens[:position], token), weight * (1 - accept) * float(residual[token])
                    )
            weight *= accept
        for token in range(size):
            found[*tokens, token] += weight * float(test.law[length][token])
    for outcome, probability in found.items():
        expected = math.prod(float(target[outcome[:i]][outcome[i]]) for i in range(length + 1))
        assert probability == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("point", [False, True])
def test_exact_sampling_draws_the_targets_law(generator, point):
    """40,000 draws of the verifier itself; each share within 4.5 standard errors (p < 1e-5)."""
    p = law(generator, 6)
    q = torch.eye(6)[int(p.argmin())] if point else law(generator, 6)
    found = first_token_law(Exact(sampling=DRAWN), p, q, point=point)
    assert (found - p).abs().max() < 4.5 * float((p * (1 - p)).max().sqrt()) / 200


def test_double_sampling_of_the_official_code_is_not_exact(generator):
    """Accepting a draft that equals either of two samples changes the law by p (1 - p)."""
    p = law(generator, 5)
    x = int(p.argmax())
    accepted = 1 - (1 - float(p[x])) ** 2
    assert abs(accepted - float(p[x])) == pytest.approx(float(p[x] * (1 - p[x])))
    found = first_token_law(Exact(sampling=DRAWN), p, torch.eye(5)[x], point=True)
    assert abs(float(found[x]) - float(p[x])) < 0.02 < accepted - float(p[x])


def test_an_ensemble_draws_its_mixture(generator):
    p, q = law(generator, 6), law(generator, 6)
    found = first_token_law(Ensemble(weight=0.6, sampling=DRAWN), p, q, point=False)
    mixture = 0.6 * p + 0.4 * q
    assert (found - mixture).abs().max() < 4.5 * 0.5 / 200
    assert (mixture - p).abs().max() > 0.05  # the two laws can be told apart


def test_mentored_decoding_draws_its_law_within_the_bound(generator):
    for _ in range(20):
        p, q = law(generator, 8), law(generator, 8)
        m = mentored_law(p, q, 0.1).double()
        divergence = float((p.double() * (p.double() / m).log()).sum())
        assert float(m.sum()) == pytest.approx(1)
        whole = float((p.double() * (p.double() / q.double()).log()).sum())
        assert divergence == pytest.approx(min(0.1, whole), abs=1e-6)  # no bound is left unused
        clipped = m / p.double()
        inside = (clipped > 1.0001 * clipped.min()) & (clipped < 0.9999 * clipped.max())
        torch.testing.assert_close(m[inside], q.double()[inside], rtol=1e-5, atol=1e-7)
        overlap = torch.minimum(m, q.double()).sum()
        assert overlap >= torch.minimum(p, q).sum() - 1e-6
        torch.testing.assert_close(mentored_law(p, q, 0.0), p)
    found = first_token_law(Mentored(divergence=0.1, sampling=DRAWN), p, q, point=False, draws=8000)
    assert (found - m.float()).abs().max() < 4.5 * 0.5 / 8000**0.5


def test_a_large_bound_lets_the_draft_have_its_way(generator):
    p, q = law(generator, 8), law(generator, 8)
    torch.testing.assert_close(mentored_law(p, q, 50.0), q, rtol=1e-4, atol=1e-5)


# --- FLy ------------------------------------------------------------------------------------------


def fly_by_the_text(native, open_at, window, official):
    """Spec 2.2, 1-based, word for word: number of kept drafts."""
    K = len(native)
    m = {i + 1: native[i] for i in range(K)}
    checked = window - 1 if official and window else window
    s_gate = min([j for j in m if not m[j] and not open_at[j - 1]], default=K + 1)
    s_defer = K + 1
    for j in m:
        if m[j] or not open_at[j - 1]:
            continue
        clean = sum(not m[i] for i in range(j + 1, min(j + checked, K) + 1)) == 0
        if not (clean and j + window <= K):
            s_defer = min(s_defer, j)
    return min(s_gate, s_defer) - 1


def kept(accepted):
    return next((i for i, one in enumerate(accepted) if not one), len(accepted))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), max_size=16),
    st.integers(0, 8),
    st.sampled_from(["full", "official"]),
)
def test_the_scan_equals_the_text(bits, window, check):
    native, open_at = [a for a, _ in bits], [b for _, b in bits]
    expected = fly_by_the_text(native, open_at, window, check == "official")
    assert kept(loosen(native, open_at, window, check)) == expected


@pytest.mark.parametrize("check", ["full", "official"])
def test_all_patterns_are_ordered_as_they_must(check):
    """Smaller W keeps no less; official keeps no less than full, full no less than exact."""
    for pattern in itertools.product([True, False], repeat=9):
        every = [True] * 9
        lengths = [kept(loosen(pattern, every, window, check)) for window in range(10)]
        assert lengths == sorted(lengths, reverse=True)
        for window in range(10):
            full = kept(loosen(pattern, every, window, "full"))
            official = kept(loosen(pattern, every, window, "official"))
            assert official >= full >= kept(pattern)
        assert lengths[9] == kept(pattern)  # K <= W is exact


@pytest.mark.parametrize(
    ("bits", "window", "expected"),
    [
        ("1111", 2, 4),
        ("0111", 2, 4),
        ("1011", 2, 4),  # the window just fits
        ("1101", 2, 2),  # it does not
        ("1110", 0, 4),  # no window to wait for
        ("01011111", 2, 0),  # the second mismatch lies in the first one's window
        ("01101111", 2, 8),  # it lies behind it
        ("0110", 2, 3),
    ],
)
def test_hand_cases(bits, window, expected):
    native = [bit == "1" for bit in bits]
    assert kept(loosen(native, [True] * len(bits), window, "full")) == expected


def rows_for(native, size=12, confidence=2.0):
    """Logits whose argmax is the drafted token 3 where native, token 5 elsewhere."""
    rows = torch.zeros(len(native) + 1, size)
    for index, agrees in enumerate(native):
        rows[index, 3 if agrees else 5] = confidence
        rows[index, 5 if agrees else 3] = confidence - 0.5
    rows[-1, 7] = confidence
    return rows


def test_limits_of_fly(generator):
    native = [True, False, True, True, False, True]
    block, rows = block_of([3] * 6), rows_for(native)
    exact = Exact().verify(block, rows, generator)
    assert exact.path == [0] and exact.next_token == 5
    for strict in (Fly(threshold=9.0, window=0), Fly(threshold=0.0, window=6)):
        assert strict.verify(block, rows, generator).path == exact.path
    assert Fly(threshold=0.0, window=0).verify(block, rows, generator).path == list(range(6))
    decision = Fly(threshold=0.0, window=2).verify(block, rows, generator)
    assert decision.path == [0, 1, 2, 3] and decision.next_token == 5 and decision.loosened == 1
    first, second = decision.events
    assert (first.position, first.loosened, second.position, second.loosened) == (1, True, 4, False)
    assert first.chosen == 5 and first.rank == 1 and first.drafted_probability > 0
    assert not Fly().lossless and Exact().lossless


def test_protected_tokens_are_strict_and_close_windows(generator):
    native = [True, False, True, True, True, True]
    rows = rows_for(native)
    free = Fly(threshold=0.0, window=2)
    assert len(free.verify(block_of([3] * 6), rows, generator).path) == 6
    for protected in ({3}, {5}):  # the drafted token, the target's token
        strict = Fly(threshold=0.0, window=2, protected=frozenset(protected))
        assert strict.verify(block_of([3] * 6), rows, generator).path == [0]
    rows[2, 9] = 9.0  # the target agrees with an end right after the mismatch
    tokens = [3, 3, 9, 3, 3, 3]
    strict = Fly(threshold=0.0, window=2, protected=frozenset({9}))
    assert strict.verify(block_of(tokens), rows, generator).path == [0]


def test_gate_measures(generator):
    p = law(generator, 7, 50)
    top = p.sort(dim=-1, descending=True).values[:, :3]
    direct = -(top * top.log()).sum(dim=-1)
    torch.testing.assert_close(gate_measure(p, "top", 3), direct)
    full = -(p * p.log()).sum(dim=-1)
    torch.testing.assert_close(gate_measure(p, "top", 50), full)
    normalized = gate_measure(p, "normalized", 3)
    assert ((normalized >= 0) & (normalized <= 1)).all()
    even = torch.full((1, 50), 1 / 50)
    assert float(gate_measure(even, "normalized", 3)) == pytest.approx(1)
    assert float(gate_measure(torch.full((1, 3), 1 / 3), "top", 3)) == pytest.approx(math.log(3))
    sure = torch.zeros(1, 50)
    sure[0, 4] = 1
    assert float(gate_measure(sure, "top", 3)) == 0  # no NaN from 0 ln 0
    two = torch.zeros(1, 50)
    two[0, :2] = torch.tensor([0.911, 0.089])
    assert float(gate_measure(two, "top", 3)) == pytest.approx(0.3, abs=2e-3)


def test_sampled_fly_with_the_gate_shut_is_exact_sampling(generator):
    p, q = law(generator, 6), law(generator, 6)
    shut = Fly(threshold=9.0, window=1, sampling=DRAWN)
    found = first_token_law(shut, p, q, point=False)
    assert (found - p).abs().max() < 4.5 * 0.5 / 200


def test_expected_length_follows_the_recursion():
    """Spec 2.7 with independent matches: simulated and computed lengths agree to 0.05."""
    K, match, opens, window = 15, 0.9, 0.5, 6
    random = torch.Generator().manual_seed(0)
    native = (torch.rand(20_000, K, generator=random) < match).tolist()
    gates = (torch.rand(20_000, K, generator=random) < opens).tolist()
    lengths = [
        min(kept(loosen(n, g, window, "full")) + 1, K + 1)
        for n, g in zip(native, gates, strict=True)
    ]
    f = [1.0]
    for n in range(1, K + 1):
        r = 1.0
        if n - 1 >= window:
            clean = opens * match**window
            r = clean * (1 + window + f[n - 1 - window]) + (1 - clean)
        f.append(match * (1 + f[n - 1]) + (1 - match) * r)
    assert f[K] == pytest.approx(9.84, abs=0.01)
    assert sum(lengths) / len(lengths) == pytest.approx(f[K], abs=0.08)


# --- the other rules ------------------------------------------------------------------------------


def test_margin_and_typical_reach_their_limits(generator):
    native = [True, False, True]
    block, rows = block_of([3] * 3), rows_for(native)
    assert Margin(margin=0.0).verify(block, rows, generator).path == [0]
    assert Margin(margin=0.49).verify(block, rows, generator).path == [0]
    assert Margin(margin=0.51).verify(block, rows, generator).path == [0, 1, 2]
    shifted = Margin(margin=0.51).verify(block, rows + 100, generator)
    assert shifted.path == [0, 1, 2]
    assert Typical(epsilon=1.0, delta=1e9).verify(block, rows, generator).path == [0]
    assert Typical(epsilon=1e-9).verify(block, rows, generator).path == [0, 1, 2]


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    p = Sampling(temperature=1.0, top_k=2).law(logits)
    torch.testing.assert_close(p, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    p = Sampling(temperature=1.0, top_p=0.8).law(logits)
    torch.testing.assert_close(p, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    p = Sampling(temperature=1.0, top_p=0.81).law(logits)
    torch.testing.assert_close(p[0, 3], torch.tensor(0.0))
    assert Sampling().law(logits).sum() == pytest.approx(1)
    cold = Sampling(temperature=0.01).law(logits)
    assert float(cold[0, 0]) == pytest.approx(1)


def test_settings_that_mean_nothing_are_refused(generator):
    nan, inf = float("nan"), float("inf")
    for wrong in (
        {"temperature": -1.0},
        {"temperature": nan},
        {"temperature": inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": nan},
    ):
        with pytest.raises(ValueError, match="temperature"):
            Sampling(**wrong)
    with pytest.raises(ConfigError, match="temperature above 0"):
        Ensemble(sampling=Sampling())
    with pytest.raises(ConfigError, match="temperature above 0"):
        Mentored(sampling=Sampling())
    with pytest.raises(ValueError, match="window"):
        Fly(window=-1)
    with pytest.raises(ValueError, match="threshold"):
        Fly(threshold=nan)
    for wrong in ({"measure": "odd"}, {"window_check": "odd"}):
        with pytest.raises(ValueError, match="'odd'"):
            Fly(**wrong)
    for wrong in ({"epsilon": 1.5}, {"epsilon": nan}, {"delta": -0.1}, {"delta": nan}):
        with pytest.raises(ValueError, match="epsilon"):
            Typical(**wrong)
    for cls, wrong in ((Margin, {"margin": nan}), (Mentored, {"divergence": nan})):
        with pytest.raises(ValueError, match="need"):
            cls(**wrong)
    tree = Block([1, 2], parents=[-1, -1])
    with pytest.raises(ConfigError, match="chains"):
        Fly().verify(tree, torch.zeros(3, 5), generator)
    drawn_tree = Block([1, 2], torch.ones(2, 5) / 5, [-1, -1])
    with pytest.raises(ConfigError, match="point drafter"):
        Exact(sampling=DRAWN).verify(drawn_tree, torch.zeros(3, 5), generator)


def test_a_tree_is_walked_exactly(generator):
    """Children of the root 1, 2; of the first 3, 4: the target says 1, 4, then 7."""
    block = Block([1, 2, 3, 4], parents=[-1, -1, 0, 0])
    rows = torch.zeros(5, 9)
    rows[0, 1], rows[1, 4], rows[4, 7] = 5.0, 5.0, 5.0
    decision = Exact().verify(block, rows, generator)
    assert decision.path == [0, 3] and decision.next_token == 7
    rows[0, 8] = 9.0
    assert Exact().verify(block, rows, generator).path == []


def test_a_sampled_tree_draws_the_targets_law(generator):
    p = law(generator, 6)
    block = Block([0, 1, 2], parents=[-1, -1, -1])
    rows = p.log().expand(4, 6)
    counts = torch.zeros(6)
    for _ in range(20_000):
        decision = Exact(sampling=DRAWN).verify(block, rows, generator)
        first = block.tokens[decision.path[0]] if decision.path else decision.next_token
        counts[first] += 1
    assert (counts / 20_000 - p).abs().max() < 4.5 * 0.5 / 20_000**0.5
