"""A pair of models that speculates under an arbiter, as a session of the ordinary decoding loop."""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from effllm.modules.arbitration.engine import Arbiter, ShownDraft
from effllm.modules.arbitration.exploring import Pair
from effllm.modules.arbitration.rules import Score
from effllm.modules.arbitration.stepping import ModelStepper
from effllm.modules.decoding.proposers.base import Nothing
from effllm.modules.decoding.proposers.draft import DraftModel
from effllm.modules.decoding.session import Session
from effllm.modules.decoding.verifiers.exact import Exact
from effllm.modules.errors import UnsupportedModelError
from effllm.modules.inference.runner import ModelRunner


def arbitrated_session(
    pair: Pair,
    score: Score,
    threshold: float,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    stop_strings: tuple[str, ...] = (),
) -> Session:
    """What the simulator follows, decoded.

    Args:
        pair: two models with their own caches.
        score: of observations; a policy knows the pair that it was trained on only.
        threshold: the draft's token is kept where the score is above.
        tokenizer: for text.
        stop_strings: the text ends in front of the first of these.

    Raises:
        UnsupportedModelError: for a pair of tables.
    """
    ours, theirs = _models(pair)
    target = ModelRunner(ours)
    draft = ShownDraft(ModelRunner(theirs), target.vocabulary, tokens=pair.block)
    return Session(
        target=target,
        proposer=draft,
        verifier=Arbiter(
            score=score,
            threshold=threshold,
            draft=draft,
            classes=pair.classes,
            decisions=pair.decisions,
        ),
        ends=frozenset({pair.end}),
        tokenizer=tokenizer,
        stop_strings=stop_strings,
    )


def rival_sessions(pair: Pair) -> dict[str, Session]:
    """Decoding with the target alone, and exact speculation with the same draft.

    Raises:
        UnsupportedModelError: for a pair of tables.
    """
    target, draft = _models(pair)
    runner = ModelRunner(target)
    drafting = DraftModel(ModelRunner(draft), runner.vocabulary, tokens=pair.block)
    return {
        name: Session(
            target=runner, proposer=proposer, verifier=Exact(), ends=frozenset({pair.end})
        )
        for name, proposer in (("plain", Nothing()), ("exact", drafting))
    }


def _models(pair: Pair) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Target and draft."""
    if not isinstance(pair.target, ModelStepper) or not isinstance(pair.draft, ModelStepper):
        raise UnsupportedModelError(
            "this pair is made of tables, which are no language models; take one of models (toy)"
        )
    return pair.target.model, pair.draft.model


def letter_tokenizer(pieces: Sequence[str], special: Sequence[int]) -> PreTrainedTokenizerFast:
    """One token a letter; other letters are left out.

    Args:
        pieces: (V,) the text of every token.
        special: ids that decoded text does not show.
    """
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    letters = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    letters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=letters,
        additional_special_tokens=[pieces[number] for number in special],
    )
