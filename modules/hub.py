"""Ask whether the hub can serve something before any work is done."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from effllm.modules.errors import DataError

_SECONDS = 10.0


def require_name(name: str, kind: str) -> None:
    """Refuse what can be no name on the hub, such as the path of a folder that is not there.

    Raises:
        DataError: names both possibilities.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise DataError(
            f"{kind} {name}: there is no such folder, and it is no name on the hub (owner/name)"
        ) from error


def require_on_hub(name: str, kind: str, revision: str, remedy: str) -> set[str]:
    """Refuse what is neither in the local cache nor to be had from the hub.

    Args:
        name: `owner/name`.
        kind: `model` or `dataset`.
        revision: branch, tag or commit.
        remedy: what the user can do, for the message.

    Returns:
        Names of the files there; empty if the local cache serves.

    Raises:
        DataError: if the hub has it not, hides it, or does not answer within ten seconds.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    require_name(name, kind)
    # Data sets are streamed, so only models can be served by the cache alone.
    if kind == "model" and isinstance(
        try_to_load_from_cache(name, "config.json", revision=revision), str
    ):
        return set()
    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_SECONDS)
    except Exception as error:  # its many kinds of failure have no common base
        raise _unreachable(f"{kind} {name}", revision, error, remedy) from error
    return {file.rfilename for file in getattr(found, "siblings", None) or []}


@cache
def resolved_commit(name: str, kind: str, revision: str) -> str:
    """The commit that a branch or tag stands for, so that a result names what it was made from.

    The local cache is asked first, as loading will; without it or the hub, the revision itself.

    Raises:
        DataError: for what can be no name on the hub.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    require_name(name, kind)
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    file = folder / "refs" / revision
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_SECONDS)
    except Exception:  # noqa: BLE001 - its many kinds of failure have no common base
        return revision  # `require_on_hub` says why before any work
    return found.sha or revision


def configuration_on_hub(name: str, revision: str, remedy: str) -> dict[str, Any]:
    """Content of a model's `config.json`, from the local cache or the hub.

    Args:
        name: `owner/name`.
        revision: branch, tag or commit.
        remedy: what the user can do, for the message.

    Raises:
        DataError: if it cannot be had, or is no JSON object.
    """
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(name, "config.json", revision=revision, etag_timeout=_SECONDS)
        config: dict[str, Any] = dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"model {name}: config.json is broken ({error})") from error
    except Exception as error:  # as above
        raise _unreachable(f"model {name}", revision, error, remedy) from error
    return config


def _unreachable(what: str, revision: str, error: Exception, remedy: str) -> DataError:
    reason = type(error).__name__
    return DataError(
        f"{what} (revision {revision}) cannot be had from the hub ({reason}); {remedy}"
    )
