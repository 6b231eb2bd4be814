"""Let lm-evaluation-harness tasks that write their answers be decoded by our own loop.

The harness asks for text up to a stop string or a number of tokens. Each request is decoded by a
session, so that a task gives the accuracy of a decoder, exact or not. With plain decoding the
texts are those of the harness's own adapter; a test holds both together.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effllm.modules.decoding.session import Session
from effllm.modules.errors import ConfigError


@dataclass(frozen=True)
class Answer:
    """What was decoded for one request.

    Attributes:
        task: name of the task.
        id: item of the task.
        text: in front of the first stop string.
        tokens: decoded token ids, one that ended the text included.
        rounds: target passes after the prompt's.
        loosened: drafted tokens kept though the target would have chosen others.
    """

    task: str
    id: int
    text: str
    tokens: int
    rounds: int
    loosened: int


class DecodingLM(HFLM):
    """The harness's model adapter with `generate_until` decoded by a session, one by one.

    Args:
        pretrained: the session's target.
        tokenizer: its tokenizer.
        session: decodes greedily; its stop strings are replaced by those of each request.
        max_length: longest prompt plus continuation, in tokens; longer prompts lose their
            beginning, as in the harness.
        stored: file that answers are appended to and, after an interruption, taken from.
        progress: called with requests done and in all.

    Attributes:
        answers: in the order of the requests.

    Raises:
        ConfigError: for a session that samples, and for requests that ask for samples or leave no
            room for a prompt.
    """

    def __init__(
        self,
        *,
        pretrained: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        session: Session,
        max_length: int,
        stored: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if not session.verifier.sampling.greedy:
            raise ConfigError("tasks are decoded greedily: set the decoder's temperature to 0")
        super().__init__(
            pretrained=pretrained, tokenizer=tokenizer, batch_size=1, max_length=max_length
        )
        self.session = session
        self.stored, self.progress = stored, progress
        self.answers: list[Answer] = []

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts in the order of the requests.

        Raises:
            KeyboardInterrupt: when interrupted; finished answers stay in the file.
        """
        del disable_tqdm
        done = _read(self.stored)
        for number, request in enumerate(requests, start=1):
            answer = done.get((request.task_name, request.doc_id))
            if answer is None:
                answer = self._decode(request)
                with self.stored.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(asdict(answer)) + "\n")
            self.answers.append(answer)
            self.progress(number, len(requests))
        return [answer.text for answer in self.answers[-len(requests) :]]

    def _decode(self, request: Any) -> Answer:
        context, asked = request.args
        wanted = normalize_gen_kwargs(asked, self.max_gen_toks)
        if wanted["do_sample"]:
            raise ConfigError(f"task {request.task_name} asks for samples; only greedy tasks run")
        budget = int(wanted["max_gen_toks"])
        if budget >= self.max_length:
            raise ConfigError(
                f"task {request.task_name} writes up to {budget} tokens, which leaves no room for "
                f"a prompt: raise max_length above {self.max_length}"
            )
        prompt = self.tok_encode(context, left_truncate_len=self.max_length - budget)
        stops = [one for one in wanted["until"] if one]
        special = [one for one in stops if one in self.tokenizer.all_special_tokens]
        session = replace(
            self.session,
            tokenizer=self.tokenizer,
            stop_strings=tuple(one for one in stops if one not in special),
            # Decoded text does not show special tokens: they end a text by their ids.
            ends=self.session.ends | set(self.tokenizer.convert_tokens_to_ids(special)),
        )
        found = session.decode(prompt, budget)
        assert found.text is not None
        return Answer(
            task=request.task_name,
            id=request.doc_id,
            text=found.text,
            tokens=len(found.tokens),
            rounds=len(found.rounds),
            loosened=sum(one.loosened for one in found.rounds),
        )


def _read(stored: Path) -> dict[tuple[str, int], Answer]:
    """Answers of an interrupted run; what a kill or a power cut left unreadable is taken off."""
    if not stored.is_file():
        return {}
    lines, answers = [], []
    for line in stored.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        try:
            answers.append(Answer(**json.loads(line)))
        except ValueError:
            break
        lines.append(line)
    stored.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {(answer.task, answer.id): answer for answer in answers}
