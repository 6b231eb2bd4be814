"""Small language models of our own, trained from scratch to have different skills."""

from random import Random

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from effllm.modules.arbitration.problems import CHARACTERS, END, Problem
from effllm.modules.training import OptimizerFactory, rising_then_falling

_IGNORED = -100  # of transformers' and torch's cross-entropy


def character_model(*, layers: int, width: int, heads: int, seed: int) -> PreTrainedModel:
    """A random float32 model of the Llama family over `CHARACTERS`, the same for the same seed.

    Args:
        layers: decoder blocks.
        width: hidden size; the feed-forward part is twice as wide.
        heads: of attention.
        seed: of the weights.
    """
    config = LlamaConfig(
        vocab_size=len(CHARACTERS),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@torch.no_grad()
def add_noise(model: PreTrainedModel, deviations: float, generator: torch.Generator) -> None:
    """Move every matrix entry at random by so many deviations of its matrix, in place."""
    for weight in model.parameters():
        if weight.dim() > 1:
            drawn = torch.randn(weight.shape, generator=generator)
            weight.add_(deviations * weight.std() * drawn)


def as_sequences(problems: list[Problem], habit: float, random: Random) -> tuple[Tensor, Tensor]:
    """Problems with right outputs: (N, T) token ids, and what each place is to predict.

    Only the output is predicted, since operands are random letters.

    Args:
        problems: with prompts of one length.
        habit: share of places with several right tokens where the first of them is written.
        random: of the draws at these places.
    """
    rows = [
        [
            *one.prompt,
            *(allowed[random.random() >= habit and len(allowed) > 1] for allowed in one.answer),
            END,
        ]
        for one in problems
    ]
    texts = torch.tensor(rows)
    wanted = texts.roll(-1, dims=1)
    wanted[:, : len(problems[0].prompt) - 1] = _IGNORED
    wanted[:, -1] = _IGNORED
    return texts, wanted


class SkillTraining(L.LightningModule):
    """Train a language model on solved problems.

    Args:
        model: over the problems' tokens.
        optimizer: factory, called with all parameters.
        warmup: share of all steps with a rising learning rate; then it falls as a cosine.
    """

    def __init__(
        self, model: PreTrainedModel, optimizer: OptimizerFactory, warmup: float = 0.2
    ) -> None:
        super().__init__()
        self.model, self.optimizer, self.warmup = model, optimizer, warmup

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        """Cross-entropy of (B, T) texts and what their places are to predict."""
        texts, wanted = batch
        logits = self.model(input_ids=texts, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=_IGNORED
        )
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The configured optimiser under a rising, then falling learning rate."""
        optimizer = self.optimizer(list(self.parameters()))
        steps = int(self.trainer.estimated_stepping_batches)
        return rising_then_falling(optimizer, steps=steps, warmup=self.warmup)
