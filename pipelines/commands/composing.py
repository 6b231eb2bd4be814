"""From what was typed to a checked configuration, and refusals on one line."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal import defaults_list
from hydra.core.default_element import InputDefault
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from effllm.modules.errors import ConfigError
from effllm.modules.trainer import MACHINE_KEYS, TrainerConfig
from effllm.pipelines.commands import schema
from effllm.pipelines.commands.catalogue import CONF_DIR
from effllm.pipelines.engine.building import faults, one_a_line, suggestion
from effllm.pipelines.engine.graph import ARTIFACT_PREFIX
from effllm.pipelines.engine.processor import (
    computes_in_bfloat16,
    settle_types,
    wanted_device,
)

_SECTIONS = ("execute", "paths", "trainer", "logger", "budget", "run")
# Overrides that a report's name leaves out: they change no results, or stand in it anyway.
_NOT_TOLD = ("execute", "paths", "logger", "run", "hydra", "local", "paper", "scale")

_choices_of_hydra = defaults_list._create_interpolation_map


def _choices(
    overrides: defaults_list.Overrides, inputs: list[InputDefault], self_added: bool
) -> DictConfig:
    """What `${...}` in a list of defaults may refer to; nothing where there is none."""
    if any(default.is_interpolation() for default in inputs):
        return _choices_of_hydra(overrides, inputs, self_added)
    return OmegaConf.create({})


# Hydra collects that for each of hundreds of files, which is half of the time of composing a paper.
defaults_list._create_interpolation_map = _choices  # type: ignore[assignment]


def compose(overrides: Sequence[str], name: str = "config") -> DictConfig:
    """The configuration that `run` (or another verb with a file of its own) would use.

    Raises:
        ConfigError: on one line.
    """
    schema.register()
    try:
        with hydra.initialize_config_dir(CONF_DIR, version_base="1.3"):
            return hydra.compose(name, overrides=expanded(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, overrides, name) from error


def expanded(overrides: Sequence[str]) -> list[str]:
    """Overrides as they were meant, where neither the shell nor Hydra knows.

    `~/` at the beginning of a value is the home folder. A model's name that is a folder is its path
    (results are known by what is in it and by its last name), and `artifact:` a result.
    """
    home, found = os.path.expanduser("~"), []
    for one in overrides:
        typed = re.sub(r"""(?<=[=\[,"'])~(?=/|["']?$)""", lambda _: home, one)
        folder = Path(typed.removeprefix("model.name=").strip("\"'"))
        if typed.startswith("model.name=") and folder.is_dir():
            found += [f'model.name="{folder.resolve().name}"', f'model.path="{folder}"']
        elif typed.startswith(f"model={ARTIFACT_PREFIX}"):
            found += ["model=stored", f"model.ref={typed.partition(':')[2]}"]
        else:
            found.append(typed)
    return found


def resolve(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Plain data: the pipeline, types that are `auto` settled, and the sections about the machine.

    Raises:
        ConfigError: for a missing mandatory value or a broken interpolation.
    """
    try:
        pipeline = OmegaConf.to_container(config.pipeline, resolve=True, throw_on_missing=True)
        sections: dict[str, Any] = {
            key: OmegaConf.to_container(config[key], resolve=True, throw_on_missing=True)
            for key in _SECTIONS
        }
        sections |= {"paper": config.paper, "scale": config.scale, "seed": config.seed}
        sections["packages"] = OmegaConf.to_container(config.packages)
    except OmegaConfBaseException as error:
        raise one_line(error) from error
    _check_sections(sections)
    assert isinstance(pipeline, dict)
    settle_types(pipeline, able=computes_in_bfloat16(wanted_device(sections["trainer"])))
    return pipeline, sections  # type: ignore[return-value]


def _check_sections(sections: Mapping[str, Any]) -> None:
    """Refuse unknown keys and wrong values outside of the pipeline, all at once."""
    problems = [
        fault
        for key, kind in (
            ("execute", schema.Execute),
            ("paths", schema.Paths),
            ("trainer", TrainerConfig),
        )
        for fault in faults(key, kind, sections[key], nested=())
    ]
    if not 0 <= sections["seed"] < 2**63:
        problems.append(f"seed: expected 0 <= seed < 2**63, found {sections['seed']}")
    known = _known_budgets(sections["scale"])
    problems += [
        f"budget.{key}: no stage has such a budget{suggestion(key, known)}"
        for key in _flat(sections["budget"])
        if known and key not in known
    ]
    if problems:
        raise ConfigError(one_a_line(problems))


def _known_budgets(scale: str) -> list[str]:
    """Budgets that the files of a scale give; none for a scale of the user's own."""
    common = Path(CONF_DIR, "scale", f"{scale}.yaml")
    if not common.is_file():
        return []
    known = list(yaml.safe_load(common.read_text(encoding="utf-8"))["budget"])
    for file in Path(CONF_DIR, "budget").glob(f"*/{scale}.yaml"):
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
        known += [f"{file.parent.name}.{key}" for key in keys]
    return known


def _flat(budget: Mapping[str, Any]) -> list[str]:
    """Names of budgets, those of a family with its name before a dot."""
    return [
        name
        for key, value in budget.items()
        for name in ([f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key])
    ]


def differences(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """What a run was told beside paper and scale; empty if that leaves its pipeline as it was."""
    told = sorted(
        override
        for override in overrides
        if not _changes_no_results(override.partition("=")[0].lstrip("+~"))
    )
    if not told:
        return []
    plain = [f"paper={config.paper}", f"scale={config.scale}"]
    try:
        usual, _ = resolve(hydra.compose("config", overrides=plain))
    except (ConfigError, HydraException, OmegaConfBaseException):
        return told  # a paper that is not whole without them
    return told if usual != resolve(config)[0] else []


def _changes_no_results(key: str) -> bool:
    group, _, name = key.partition(".")
    return re.split(r"[./@:]", key)[0] in _NOT_TOLD or (group == "trainer" and name in MACHINE_KEYS)


def explained(error: Exception, overrides: Sequence[str], name: str = "config") -> ConfigError:
    """Hydra's refusal on one line; of a key that does not exist, with what it may have meant."""
    text = " ".join(str(error).split())
    if text.startswith("You must specify 'paper'"):
        return ConfigError("which paper? give paper=sds, for example; effllm papers lists them")
    placed = re.search(r"Could not override '(\S+@\S+)'\. Did you mean .*? override (.*)\?", text)
    if placed is not None:  # a group at a place where it is not
        choices = placed[2].removeprefix("one of ").split(", ")
        return ConfigError(f"{placed[1]}: nothing is chosen there{suggestion(placed[1], choices)}")
    refused = re.search(r"Could not override '([\w.]+)'", text)
    if refused is None:
        return one_line(error)
    key = refused[1]
    others = [word for word in overrides if "=" in word and word.partition("=")[0] != key]
    try:
        node: Any = compose(others, name)
        found = ""
        for part in key.split("."):
            if not isinstance(node, DictConfig):
                return ConfigError(f"{key}: {found} is a value and has no keys")
            if part not in node:
                where = found or "the configuration"
                return ConfigError(f"{key}: {where} has no key {part}{suggestion(part, node)}")
            found = f"{found}.{part}".lstrip(".")
            if OmegaConf.is_interpolation(node, part):
                text = OmegaConf.to_container(node, resolve=False)[part]  # type: ignore[index]
                return ConfigError(f"{key}: {found} is {text}; set the key there")
            node = node.get(part)
    except ConfigError:  # something else is wrong as well; Hydra's own words must do
        pass
    return one_line(error)


def one_line(error: Exception) -> ConfigError:
    """What Hydra or OmegaConf refuse, on one line that says what to type instead."""
    unread = re.match(r"Ambiguous value for argument '(.*)'\n", str(error))
    if isinstance(error, OverrideParseException) or unread:
        argument = unread[1] if unread else getattr(error, "override", "")
        return ConfigError(" ".join(_explain_quoting(argument).splitlines()))
    parts = [str(error), str(error.__cause__ or "")]
    lines = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
    return ConfigError(" ".join(dict.fromkeys(lines)))


def _explain_quoting(argument: str) -> str:
    """What to type instead of an override that Hydra's grammar does not take."""
    key, found, value = argument.partition("=")
    if not found:
        return f"{argument!r}: settings are given as key=value; see effllm run --help"
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    # A backslash counts as one, but in front of a quote.
    inner = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + m[2].replace('"', '\\"'), bare)
    typed = shlex.quote(f'{key}="{inner}"')
    return (
        f"{argument}: this value has letters that mean something to Hydra; put it in quotes "
        f"inside the shell's quotes: {typed}"
    )
