"""Ask whether the hub can serve something before any work is done."""

from effllm.modules.errors import DataError

_SECONDS = 10.0


def require_on_hub(name: str, kind: str, revision: str, remedy: str) -> None:
    """Refuse what is neither in the local cache nor to be had from the hub.

    Args:
        name: `owner/name`.
        kind: `model` or `dataset`.
        revision: branch, tag or commit.
        remedy: what the user can do, for the message.

    Raises:
        DataError: if the hub has it not, hides it, or does not answer within ten seconds.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    # Data sets are streamed, so only models can be served by the cache alone.
    if kind == "model" and isinstance(
        try_to_load_from_cache(name, "config.json", revision=revision), str
    ):
        return
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=_SECONDS)
    except Exception as error:  # its many kinds of failure have no common base
        raise DataError(
            f"{kind} {name} (revision {revision}) cannot be had from the hub "
            f"({type(error).__name__}); {remedy}"
        ) from error
