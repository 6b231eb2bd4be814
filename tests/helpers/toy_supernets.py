"""Small supernets of tiny models."""

import json

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from effllm.modules.calibration.stream import BlockStream
from effllm.modules.modeling.tiny import tiny_config
from effllm.modules.structural.elimination import LocalPruner
from effllm.modules.structural.supernet import (
    Supernet,
    SupernetBuilder,
    level_removals,
    level_tensors,
    registry_row,
)
from effllm.modules.structural.units import sublayers, uniform_targets


def deep_model():
    """A tiny Llama of four blocks."""
    config = tiny_config("llama")
    config.num_hidden_layers = 4
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for value in model.parameters():
        if value.dim() >= 2:
            value.data.mul_(4.0)
    return model.eval()


def windows(count=4, length=24):
    """Random token ids, (N, T)."""
    return torch.randint(3, 250, (count, length), generator=torch.Generator().manual_seed(0))


def build(model, *, accumulation="expectation", accumulate_at="sublayer", reach=2, sparsity=0.5):
    """A whole supernet in memory; returns (sub-layers, removals, centre, found, Grams seen)."""
    layers = sublayers(model)
    centre = uniform_targets(layers, sparsity)
    removals = {
        one.name: level_removals(one.units, centre[one.name], 1 if one.size > 1 else 16, reach)
        for one in layers
    }
    builder = SupernetBuilder(
        pruner=LocalPruner(), accumulation=accumulation, accumulate_at=accumulate_at
    )
    stream, found, grams = BlockStream(model, windows(), 2), {}, {}
    collect = stream.collect

    def spy(statistic, **options):
        values = collect(statistic, **options)
        grams.update({f"{stream.index}.{name}": value for name, value in values.items()})
        return values

    stream.collect = spy
    for index in range(len(stream.blocks)):
        mine = [one for one in layers if one.block == index]
        found |= builder.build_block(stream, mine, removals, centre, torch.Generator())
    return layers, removals, centre, found, grams


def store(model, folder, **options):
    """A supernet in a folder; returns it and what was found."""
    layers, removals, centre, found, _ = build(model, **options)
    rows = []
    for one in layers:
        save_file(level_tensors(one, found[one.name]), folder / f"{one.name}.safetensors")
        errors = [level.error for level in found[one.name].levels]
        rows.append(registry_row(one, removals[one.name], centre[one.name], errors))
    (folder / "supernet.json").write_text(json.dumps({"iteration": 1, "sublayers": rows}))
    return Supernet.open(folder, "here"), found
