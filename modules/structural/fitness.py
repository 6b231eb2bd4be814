"""How far a choice of levels is from the dense model: KL divergence of its logits.

The dense model is one more choice of key matrices, so teacher and candidates are one model in
memory. A candidate is evaluated from the first block on in which it differs from the nearest of the
choices whose hidden states are known; values are remembered as long as the text stays the same.
"""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel

from effllm.modules.evaluation.divergence import Divergence, Teacher
from effllm.modules.structural.resuming import ResumableModel
from effllm.modules.structural.search import Space, State
from effllm.modules.structural.supernet import Supernet
from effllm.modules.structural.units import Kept, key_matrix, padded

_DENSE = -1


class LevelModel:
    """The dense model with any choice of levels installed.

    Args:
        model: dense; its key matrices are exchanged.
        supernet: where levels come from; each is read once.
    """

    def __init__(self, model: PreTrainedModel, supernet: Supernet) -> None:
        self.model, self.supernet = model, supernet
        self.space = Space(
            supernet.layers, [supernet.removals[one.name] for one in supernet.layers]
        )
        self._matrices = [key_matrix(model, one) for one in supernet.layers]
        self._dense = [one.read().clone() for one in self._matrices]
        self._installed = [_DENSE] * len(self._matrices)
        self._levels: dict[tuple[int, int], Kept] = {}
        for place, one in enumerate(supernet.layers):
            for level, removed in enumerate(supernet.removals[one.name]):
                self._levels[place, level] = supernet.kept(model, one, removed)

    def install(self, state: State | None) -> None:
        """Put in the key matrices of a state, or the dense ones for None."""
        wanted = [_DENSE] * len(self._installed) if state is None else list(state)
        for place, level in enumerate(wanted):
            if level != self._installed[place]:
                weight = self._dense[place]
                if level != _DENSE:
                    kept = self._levels[place, level]
                    weight = padded(self.supernet.layers[place], kept)
                self._matrices[place].write(weight)
                self._installed[place] = level

    def level(self, place: int, level: int) -> Kept:
        """One level of one sub-layer."""
        return self._levels[place, level]

    def kept(self, state: State) -> dict[str, Kept]:
        """What is left of each sub-layer."""
        layers = self.supernet.layers
        return {layers[p].name: self._levels[p, level] for p, level in enumerate(state)}


class KlFitness:
    """Mean KL divergence of a state's predictions from the dense model's; less is better.

    Args:
        levels: the model.
        kind: see `effllm.modules.evaluation.divergence`.
        top_k: tokens that count.
        resume: start passes at the first changed block. Changes no value; false saves memory.
        batch_size: windows per forward pass.

    Attributes:
        full_evaluations: block evaluations of candidates, each counted with its tokens, if every
            value that was asked for had taken a full pass.
        remembered_evaluations: those of them whose value was known already.
    """

    def __init__(
        self,
        levels: LevelModel,
        *,
        kind: Divergence,
        top_k: int,
        resume: bool,
        batch_size: int,
    ) -> None:
        self.levels, self.kind, self.top_k = levels, kind, top_k
        self.resume, self.batch_size = resume, batch_size
        self.runner = ResumableModel(levels.model)
        self.full_evaluations = self.remembered_evaluations = 0
        self._teaching = 0
        self._batches: list[Sequence[Tensor]] = []
        self._teachers: list[list[Teacher]] = []
        self._known: list[dict[State, float]] = []
        self._entered: list[dict[State, list[list[Tensor]]]] = []
        self._parent: State | None = None

    @property
    def evaluations(self) -> int:
        """Block evaluations of candidates that were done, each counted with its tokens."""
        return self.runner.evaluated - self._teaching

    @property
    def effort(self) -> tuple[int, int, int]:
        """Block evaluations: done, of full passes, and of these remembered."""
        return self.evaluations, self.full_evaluations, self.remembered_evaluations

    def use_text(self, stages: Sequence[Tensor]) -> None:
        """Judge on new windows, (N, T) per stage; the dense model reads them first."""
        self._batches = [windows.split(self.batch_size) for windows in stages]
        self._known = [{} for _ in stages]
        self._entered = [{} for _ in stages]
        self.levels.install(None)
        self._teachers = []
        before = self.evaluations
        for batches in self._batches:
            teachers = []
            for batch in batches:
                logits, _ = self.runner.run(batch, keep=False)
                predictions = logits[:, :-1].flatten(0, 1)
                teachers.append(Teacher.of(predictions, self.kind, self.top_k))
            self._teachers.append(teachers)
        self._teaching = self.runner.evaluated - before

    def start_from(self, parent: State) -> None:
        """The state that candidates are near to; hidden states of others are forgotten.

        Where the parent has not been read yet, the others stay until it has: they are near to it.
        """
        self._parent = parent
        for stage, entered in enumerate(self._entered):
            if parent in entered:
                self._entered[stage] = {parent: entered[parent]}

    def __call__(self, state: State, stage: int) -> float:
        """Fitness of a state on the text of a stage."""
        full = len(self.runner.blocks) * sum(batch.numel() for batch in self._batches[stage])
        self.full_evaluations += full
        if state in self._known[stage]:
            self.remembered_evaluations += full
            return self._known[stage][state]
        parent = self._parent if self.resume and state != self._parent else None
        if parent is not None and parent not in self._entered[stage]:
            self._evaluate(parent, stage)
        return self._evaluate(state, stage)

    def _evaluate(self, state: State, stage: int) -> float:
        start, inputs = self._nearest(state, stage)
        # The first stage has too many candidates to keep what enters their blocks.
        keep = self.resume and (stage > 0 or state == self._parent)
        self.levels.install(state)
        total, positions = 0.0, 0
        entered: list[list[Tensor]] = []
        for number, (batch, teacher) in enumerate(
            zip(self._batches[stage], self._teachers[stage], strict=True)
        ):
            logits, known = self.runner.run(
                batch, start=start, inputs=inputs[number] if start else None, keep=keep
            )
            entered.append(known)
            divergences = teacher.divergence(logits[:, :-1].flatten(0, 1))
            total += float(divergences.double().sum())
            positions += len(divergences)
        if keep:
            others = {} if state == self._parent else self._entered[stage]
            self._entered[stage] = {**others, state: entered}
        self._known[stage][state] = total / positions
        return total / positions

    def _nearest(self, state: State, stage: int) -> tuple[int, list[list[Tensor]]]:
        """First block to evaluate, and what enters the blocks up to it, per batch."""
        layers = self.levels.supernet.layers
        start, nearest = 0, list[list[Tensor]]()
        for other, entered in self._entered[stage].items():
            changed = (
                layer.block
                for layer, one, another in zip(layers, state, other, strict=True)
                if one != another
            )
            first = min(changed, default=0)
            if first > start:
                start, nearest = first, entered
        return start, nearest
