"""Learning: which token a head is taught, by which law, and what stays as it is."""

import pytest
import torch
from toy_heads import random_texts, stored_texts

from effllm.modules.heads.amphista import Amphista
from effllm.modules.heads.asking import accuracies, ask, true_ranks
from effllm.modules.heads.loss import head_loss
from effllm.modules.heads.medusa import Medusa
from effllm.modules.heads.states import last_hidden
from effllm.modules.heads.target import FrozenTarget, frozen_weights
from effllm.modules.heads.training import HeadTraining, _teacher
from effllm.modules.modeling.tiny import tiny_config
from effllm.modules.training import fit

PROMPT = 5


@pytest.fixture
def texts(tiny_llama, tmp_path):
    tokens = random_texts(7, tiny_llama.config.vocab_size)
    return stored_texts(tmp_path / "texts", tokens, last_hidden(tiny_llama, tokens), PROMPT)


@pytest.fixture
def target(tiny_llama):
    return FrozenTarget.of(*frozen_weights(tiny_llama), torch.arange(tiny_llama.config.vocab_size))


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=3e-3)


def training(drafter, target, texts, **settings):
    given = {
        "judged_every": 1000,
        "judged_texts": 3,
        "optimizer": adamw,
        "attention_scale": 0.5,
        "warmup": 0.05,
        "clip_norm": 1.0,
        "decay": 0.8,
        "ce_weight": 1.0,
        "kd_weight": 1.0,
    }
    return HeadTraining(drafter, target, texts, texts, **given | settings)


def test_heads_are_asked_about_the_tokens_after_the_chosen_one(texts, target):
    """Labels, by hand, text by text."""
    batch, heads = texts.batch(range(len(texts))), 3
    drafter = Medusa(tiny_config("llama"), heads=heads)
    for whole in (False, True):
        asked = ask(drafter, target, batch, whole=whole)
        expected = []
        for text, (row, length) in enumerate(zip(batch.tokens, batch.lengths, strict=True)):
            for t in range(PROMPT - 1, int(length)):
                future = row[t + 2 : length].tolist()[:heads]
                if len(future) == heads or (future and not whole):
                    expected.append((text, [*future, *[-1] * (heads - len(future))]))
        assert asked.texts.tolist() == [text for text, _ in expected]
        assert asked.labels.tolist() == [labels for _, labels in expected]


def test_the_teacher_of_a_label_is_the_targets_law_there(tiny_llama, texts, target):
    batch = texts.batch([1, 4, 6])
    asked = ask(Medusa(tiny_config("llama")), target, batch)
    laws, rows = _teacher(target, batch, asked.texts, asked.places)
    for n in range(len(asked.texts)):
        text = int(asked.texts[n])
        known = batch.tokens[text, : batch.lengths[text]]
        truth = tiny_llama(known[None]).logits[0].softmax(dim=-1)
        for head in range(4):
            if asked.labels[n, head] >= 0:
                place = int(asked.places[n, head])
                torch.testing.assert_close(laws[rows[n, head]], truth[place - 1])


def test_the_targets_own_logits_at_the_place_cannot_be_improved(texts, target):
    """The gradient of the law's term is zero at W h_{t+k} of this very k."""
    batch = texts.batch([0, 1])
    asked = ask(Medusa(tiny_config("llama")), target, batch)
    laws, rows = _teacher(target, batch, asked.texts, asked.places)

    def gradient(shift):
        places = (asked.places - 1 + shift).clamp(max=batch.tokens.shape[1] - 1)
        logits = target.logits(batch.hidden[asked.texts[:, None], places]).requires_grad_()
        head_loss(
            logits, asked.labels, laws, rows, decay=0.8, ce_weight=0.0, kd_weight=1.0
        ).backward()
        return logits.grad.abs().max()

    assert gradient(0) < 1e-6
    assert gradient(1) > 1e-4 and gradient(-1) > 1e-4


def test_the_loss_is_that_of_its_formula(generator):
    logits = torch.randn(6, 2, 5, generator=generator, dtype=torch.float64)
    teacher = torch.randn(4, 5, generator=generator, dtype=torch.float64).softmax(dim=-1)
    labels = torch.tensor([[0, 1], [2, -1], [4, 4], [1, -1], [3, 0], [2, 2]])
    rows = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2], [1, 3]])
    logs, expected = logits.log_softmax(dim=-1), 0.0
    for head in range(2):
        known = [n for n in range(6) if labels[n, head] >= 0]
        ce = -sum(logs[n, head, labels[n, head]] for n in known) / len(known)
        kd = -sum((teacher[rows[n, head]] * logs[n, head]).sum() for n in known) / len(known)
        expected += 0.7**head * (0.3 * ce + 2.0 * kd)
    found = head_loss(logits, labels, teacher, rows, decay=0.7, ce_weight=0.3, kd_weight=2.0)
    torch.testing.assert_close(found, expected)


def test_ranks_are_those_of_a_sorted_list_and_unknown_tokens_have_the_last(
    tiny_llama, texts, tmp_path
):
    known = torch.arange(3, 150)
    target = FrozenTarget.of(*frozen_weights(tiny_llama), known)
    torch.manual_seed(0)
    drafter = Amphista(tiny_config("llama"), identity_start=False).eval()
    ranks, owners = true_ranks(drafter, target, texts, "cpu")
    at = 0
    for text in range(len(texts)):
        batch = texts.batch([text])
        asked = ask(drafter, target, batch, whole=True)
        for n in range(len(asked.texts)):
            for head in range(4):
                token = int(batch.tokens[0, asked.places[n, head]])
                order = known[asked.logits[n, head].argsort(descending=True, stable=True)].tolist()
                expected = order.index(token) if token in order else len(known)
                assert int(ranks[at, head]) == expected
            assert int(owners[at]) == text
            at += 1
    assert at == len(ranks)
    assert (ranks == len(known)).any()


def test_accuracies_are_shares_and_conditional_on_all_before():
    ranks = torch.tensor([[0, 0], [0, 3], [2, 0], [9, 0]])
    found = accuracies(ranks)
    assert found["top1/1"] == 0.5 and found["top5/1"] == 0.75
    assert found["top1/2"] == 0.75 and found["conditional/2"] == 0.5


@pytest.mark.parametrize("cls", [Medusa, Amphista])
def test_heads_learn_a_permutation_step_by_step(cls, tmp_path):
    """Where every token names the next, head k must say the token k + 1 steps on."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, width = 9, 64
    after = torch.randperm(vocabulary, generator=generator)
    embedding = torch.randn(vocabulary, width, generator=generator)
    tokens = []
    for first in range(vocabulary):
        text = [first]
        while len(text) < 14:
            text.append(int(after[text[-1]]))
        tokens.append(text)
    texts = stored_texts(tmp_path / "texts", tokens, [embedding[one] for one in tokens], 2)
    target = FrozenTarget.of(embedding, embedding, torch.arange(vocabulary))
    torch.manual_seed(0)
    drafter = cls(tiny_config("llama"), heads=3)
    # The states foresee nothing here, so that the target's own law would teach nonsense.
    module = training(drafter, target, texts, kd_weight=0.0)
    places = [torch.arange(len(tokens))]
    fit(module, tmp_path / "fit", epochs=30, accelerator="cpu", tensors=places, batch_size=3)
    ranks, _ = true_ranks(drafter.eval(), target, texts, "cpu")
    assert not ranks.any()
    batch = texts.batch([0])
    said = target.logits(drafter(batch.hidden[:, :-1], target.embed(batch.tokens[:, 1:])))
    expected = after[batch.tokens[0, 1:]]
    for head in range(3):
        assert torch.equal(said[0, :, head].argmax(dim=-1)[3:], expected[3:])
        expected = after[expected]


def test_the_target_is_neither_trained_nor_stored(tiny_llama, texts, target, tmp_path):
    before = {name: value.clone() for name, value in tiny_llama.state_dict().items()}
    module = training(Amphista(tiny_config("llama")), target, texts)
    fit(
        module,
        tmp_path / "fit",
        epochs=2,
        accelerator="cpu",
        tensors=[torch.arange(7)],
        batch_size=4,
    )
    for name, value in tiny_llama.state_dict().items():
        assert torch.equal(value, before[name])
    stored = torch.load(tmp_path / "fit" / "last.ckpt", weights_only=True)
    assert all(name.startswith("drafter.") for name in stored["state_dict"])
    sizes = {tuple(one.shape) for one in stored["state_dict"].values()}
    assert tuple(target.embedding.shape) not in sizes


def test_attention_is_taught_more_slowly(texts, target, tmp_path):
    module = training(Amphista(tiny_config("llama")), target, texts, attention_scale=0.25)
    fit(
        module,
        tmp_path / "fit",
        epochs=1,
        accelerator="cpu",
        tensors=[torch.arange(7)],
        batch_size=7,
    )
    quick, slow = module.optimizers().param_groups
    assert slow["initial_lr"] == 0.25 * quick["initial_lr"] == 0.25 * 3e-3
    counted = len(quick["params"]) + len(slow["params"])
    assert counted == len(list(module.drafter.parameters()))


def test_it_is_judged_before_an_epoch_and_every_so_many_steps(texts, target, tmp_path):
    module = training(Medusa(tiny_config("llama")), target, texts, judged_every=3)
    fit(
        module,
        tmp_path / "fit",
        epochs=2,
        accelerator="cpu",
        tensors=[torch.arange(7)],
        batch_size=2,
    )
    rows = [line.split(",") for line in (tmp_path / "fit" / "curve.csv").read_text().split()[1:]]
    known = {(int(step), name) for step, name, _ in rows}
    assert {(1, "heldout/top1/1"), (4, "heldout/top1/1"), (5, "heldout/top1/1")} <= known
    assert {(step, "loss") for step in range(1, 9)} <= known
