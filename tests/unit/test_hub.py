"""What the hub is asked, without a hub."""

import pytest

from effllm.modules import hub
from effllm.modules.errors import DataError


def test_a_branch_is_known_by_its_commit_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    references = tmp_path / "models--team--model" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("0123456789abcdef")
    hub.resolved_commit.cache_clear()
    assert hub.resolved_commit("team/model", "model", "main") == "0123456789abcdef"
    assert hub.resolved_commit("team/model", "model", "v2") == "v2"  # offline, not in the cache
    hub.resolved_commit.cache_clear()


@pytest.mark.parametrize("name", ["/tmp/nope", "./nope", "a/b/c"])
def test_what_can_be_no_name_is_refused_before_the_hub_is_asked(name):
    with pytest.raises(DataError, match="no such folder, and it is no name on the hub"):
        hub.require_on_hub(name, "model", "main", "remedy")
    with pytest.raises(DataError, match="no such folder, and it is no name on the hub"):
        hub.resolved_commit(name, "model", "main")
