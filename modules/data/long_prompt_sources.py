"""Published long-context benchmarks: a context, a question about it, and its answers."""

from dataclasses import dataclass
from typing import Any

from effllm.modules.data.long_prompts import LongPrompt
from effllm.modules.data.published import Published, sample_groups


@dataclass(frozen=True, kw_only=True)
class LongQuestions(Published[LongPrompt]):
    """Rows with context, question and answers; see `Published` for where they come from.

    Args:
        context: column of the long part.
        question: column of what follows it.
        prefix: column of the words that begin the answer; None if there are none.
        answers: column of the answers, a list of strings.
        task: column that names the task; None puts all into one task called `name`.
        alternatives: the answers are alternatives, and the first one is taken; else all are
            wanted, in their order.
    """

    context: str
    question: str
    prefix: str | None
    answers: str
    task: str | None
    alternatives: bool

    def prompts(self, per_task: int, seed: int) -> list[LongPrompt]:
        """At most `per_task` prompts of each task; their `length` is left at 0.

        Raises:
            DataError: if the set cannot be reached, or a row is not what the columns say.
        """
        return sample_groups(list(self.items()), per_task, seed, group=lambda one: one.task)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        columns = [self.context, self.question, self.prefix, self.answers, self.task]
        return [one for one in columns if one is not None]

    @property
    def wanted(self) -> str:
        """What a row must have, in words."""
        columns = [self.context, self.question, self.prefix, self.task]
        named = " and ".join(repr(one) for one in columns if one is not None)
        return f"texts {named} and a list {self.answers!r}"

    def made_of(self, row: Any, number: int, called: str) -> LongPrompt:
        """The prompt of a row; see `Published`."""
        try:
            task = called if self.task is None else row[self.task]
            context, question = row[self.context], row[self.question]
            prefix = "" if self.prefix is None else row[self.prefix]
            answers = row[self.answers]
        except (KeyError, TypeError) as error:
            raise self.unexpected(number) from error
        if not isinstance(answers, list) or not answers:
            raise self.unexpected(number)
        texts = [task, context, question, prefix, *answers]
        if not all(isinstance(text, str) for text in texts):
            raise self.unexpected(number)
        asked = question + prefix
        # Tokenizers of words put the space in front of a word into its token.
        joint = "" if asked[-1:] in ("", "\n", "\t") else " "
        others = [] if self.alternatives else [f", {one}" for one in answers[1:]]
        pieces = [joint + answers[0], *others]
        return LongPrompt(f"{task}-{number}", task, 0, context, asked.rstrip(" "), pieces)
