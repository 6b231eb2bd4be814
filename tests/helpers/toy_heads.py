"""Hidden states of tiny texts in files, for tests of drafting heads."""

import torch
from safetensors.torch import save_file

from effllm.modules.heads.states import StateTexts


def stored_texts(folder, texts, hidden, prompt, *, per_shard=3):
    """`StateTexts` over shards of a few texts; `hidden` holds (L, C) of each, `prompt` tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for first in range(0, len(texts), per_shard):
        mine = range(first, min(first + per_shard, len(texts)))
        files.append(folder / f"shard-{len(files):04d}.safetensors")
        shard = {
            "tokens": torch.tensor([token for i in mine for token in texts[i]]).int(),
            "hidden": torch.cat([hidden[i] for i in mine]),
            "lengths": torch.tensor([len(texts[i]) for i in mine]),
            "prompt_lengths": torch.tensor([prompt for _ in mine]),
        }
        save_file(shard, files[-1])
    return StateTexts(files)


def random_texts(count, vocabulary, *, seed=0, shortest=12, longest=24):
    """Lists of random token ids of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest, (count,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (n,), generator=generator).tolist() for n in lengths]
