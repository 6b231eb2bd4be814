"""Tasks that write their answers, decoded by a session instead of the harness."""

from types import SimpleNamespace

import pytest
import torch
from processor import needs_bfloat16_kernels

from effllm.modules.decoding.answering import Answer, DecodingLM
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.lookup import PromptLookup
from effllm.modules.decoding.sampling import Sampling
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.errors import ConfigError
from effllm.modules.evaluation.tasks import recall_items
from effllm.modules.inference.runner import ModelRunner
from effllm.modules.modeling.tiny import tiny_model

CONTEXTS = ["The river crosses", "A", "one two one two one two one"]


def adapter(model, tokenizer, stored, *, proposer=None, max_length=64, temperature=0.0):
    sampling = Sampling(temperature=temperature, top_k=0, top_p=1.0)
    session = Session(
        target=ModelRunner(model),
        proposer=proposer or Nothing(),
        verifier=Exact(sampling=sampling),
        ends=frozenset({tokenizer.eos_token_id}),
    )
    return DecodingLM(
        pretrained=model,
        tokenizer=tokenizer,
        session=session,
        max_length=max_length,
        stored=stored,
    )


def requests(contexts, **asked):
    asked = {"until": [], "max_gen_toks": 12, "do_sample": False, **asked}
    return [
        SimpleNamespace(args=(context, dict(asked)), task_name="toy", doc_id=number)
        for number, context in enumerate(contexts)
    ]


def harness_texts(model, tokenizer, asked, max_length=64):
    from lm_eval.models.huggingface import HFLM

    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=max_length)
    return plain.generate_until(asked, disable_tqdm=True)


def lookup():
    return PromptLookup(max_ngram=3, min_ngram=1, tokens=4, prefer="latest")


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_texts_are_those_of_the_harness(family, tokenizer, tmp_path):
    model = tiny_model(family)
    plain = requests(CONTEXTS)
    whole = harness_texts(model, tokenizer, plain)
    stop = whole[0][2:4]  # a stop string that does occur
    for number, asked in enumerate((plain, requests(CONTEXTS, until=[stop, "zz"]))):
        expected = harness_texts(model, tokenizer, asked)
        for name, proposer in (("plain", Nothing()), ("lookup", lookup())):
            stored = tmp_path / f"{name}-{number}.jsonl"
            ours = adapter(model, tokenizer, stored, proposer=proposer)
            assert ours.generate_until(asked) == expected
    assert expected != whole and not any(stop in text for text in expected)


def test_long_prompts_lose_their_beginning_as_in_the_harness(tokenizer, tiny_llama, tmp_path):
    asked = requests(["a long context that does not fit into the room", "short"])
    expected = harness_texts(tiny_llama, tokenizer, asked, max_length=24)
    assert (
        adapter(tiny_llama, tokenizer, tmp_path / "a", max_length=24).generate_until(asked)
        == expected
    )
    with pytest.raises(ConfigError, match="task toy writes up to 24 tokens.*raise max_length"):
        adapter(tiny_llama, tokenizer, tmp_path / "b", max_length=24).generate_until(
            requests(["x"], max_gen_toks=24)
        )


def test_a_special_token_stops_the_text_though_decoding_hides_it(tokenizer, tiny_llama, tmp_path):
    special = next(one for one in tokenizer.all_special_tokens if one != tokenizer.eos_token)
    number = tokenizer.convert_tokens_to_ids(special)
    asked = requests(["The river"], until=[special])
    free = adapter(tiny_llama, tokenizer, tmp_path / "free")
    forced = tiny_llama.forward

    def always(*arguments, **options):
        output = forced(*arguments, **options)
        output.logits[..., number] = 1e4
        return output

    tiny_llama.forward = always
    free.generate_until(requests(["The river"]))
    assert free.answers[0].tokens == 12
    stopped = adapter(tiny_llama, tokenizer, tmp_path / "stopped")
    assert stopped.generate_until(asked) == [""] and stopped.answers[0].tokens == 1


@pytest.mark.parametrize("rest", ["cut", "zeros"])
def test_finished_answers_are_taken_from_the_file(tokenizer, tiny_llama, tmp_path, rest):
    stored = tmp_path / "answers.jsonl"
    asked = requests(CONTEXTS)
    whole = adapter(tiny_llama, tokenizer, stored).generate_until(asked)
    lines = stored.read_text().splitlines(keepends=True)
    assert len(lines) == 3
    # A kill cuts the last line; a power cut leaves zeros where lines were written.
    tail = lines[1][:20] if rest == "cut" else "\0" * 30 + "\n" + lines[2]
    stored.write_text(lines[0].replace('"text": "', '"text": "kept ') + tail)
    again = adapter(tiny_llama, tokenizer, stored)
    assert again.generate_until(asked) == [f"kept {whole[0]}", *whole[1:]]
    assert stored.read_text().splitlines(keepends=True)[1:] == lines[1:]


def test_an_interruption_is_passed_on(tokenizer, tiny_llama, tmp_path, monkeypatch):
    stored = tmp_path / "answers.jsonl"
    ours = adapter(tiny_llama, tokenizer, stored, proposer=lookup())

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(PromptLookup, "propose", stop)
    with pytest.raises(KeyboardInterrupt):
        ours.generate_until(requests(CONTEXTS))
    assert not stored.exists()


def test_samples_are_refused(tokenizer, tiny_llama, tmp_path):
    with pytest.raises(ConfigError, match="temperature to 0"):
        adapter(tiny_llama, tokenizer, tmp_path / "a", temperature=1.0)
    with pytest.raises(ConfigError, match="task toy asks for samples"):
        adapter(tiny_llama, tokenizer, tmp_path / "a").generate_until(
            requests(["x"], do_sample=True, temperature=0.7)
        )


@needs_bfloat16_kernels
def test_packed_models_decode_tasks_too(tokenizer, tiny_llama, tmp_path):
    """The harness ties weights when it is given a model; packing must survive that."""
    from effllm.modules.inference.packed import pack_linears

    model = tiny_llama.to(torch.bfloat16)
    asked = requests(CONTEXTS)
    expected = adapter(model, tokenizer, tmp_path / "a").generate_until(asked)
    assert pack_linears(model) > 0
    assert adapter(model, tokenizer, tmp_path / "b").generate_until(asked) == expected


def test_a_task_read_in_two_ways_has_two_sets_of_rows(tokenizer, tiny_llama, tmp_path):
    from effllm.modules.evaluation.harness import run_tasks

    (tmp_path / "items.jsonl").write_text('{"context": "x", "target": "7"}\n' * 2)
    reading = "{function: regex, regex_pattern: '%s'}, {function: take_first}"
    (tmp_path / "toy.yaml").write_text(
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/items.jsonl}}, "
        f"cache_dir: {tmp_path}/cache}}\n"
        "test_split: test\ntask: toy\noutput_type: generate_until\nmetadata: {version: 1.0}\n"
        "doc_to_text: '{{context}}'\ndoc_to_target: '{{target}}'\n"
        "generation_kwargs: {until: ['zz'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "filter_list:\n"
        f"  - {{name: strict, filter: [{reading % '#(7)'}]}}\n"
        f"  - {{name: loose, filter: [{reading % '(7)'}]}}\n"
    )
    ours = adapter(tiny_llama, tokenizer, tmp_path / "answers.jsonl")
    ours._decode = lambda request: Answer("toy", request.doc_id, "it is 7", 4, 3, 0)
    found = run_tasks(ours, ["toy"], include_path=tmp_path, include_defaults=False, limit=None)
    assert found.metrics == {"toy/exact_match/strict": 0.0, "toy/exact_match/loose": 1.0}
    assert [(row["set"], row["id"], row["correct"]) for row in found.rows] == [
        ("toy/strict", 0, 0),
        ("toy/loose", 0, 1),
        ("toy/strict", 1, 0),
        ("toy/loose", 1, 1),
    ]


def test_recall_items_hold_their_answer():
    items = recall_items(count=20, seed=0)
    for item in items:
        name = item["context"].splitlines()[-2].rpartition(" ")[2].rstrip("?")
        assert f"{name}: {item['target']}" in item["context"].splitlines()
        assert item["context"].endswith("Answer:")
    assert items == recall_items(count=20, seed=0) != recall_items(count=20, seed=1)
