"""Where models come from: a PyPI wheel, the hub or a local folder, or random initialisation.

A source says what it is (`identity`, cheap, no heavy import) and loads it (`load`). Loading never
executes a pickle or code from a repository unless the user says so in the configuration.
"""

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllm.modules.errors import ConfigError, DataError, EffLLMError
from effllm.modules.hub import configuration_on_hub, require_on_hub, resolved_commit
from effllm.modules.modeling.folders import config_problem, listing_problem, require_sound
from effllm.modules.ranges import Seed, Word
from effllm.modules.wheels import PackagedFile

_REMEDY = (
    "check the name and the network, give a local folder with model.path=…, or use the embedded "
    "model=smollm2_135m"
)

_LONGEST = 300  # characters of a library's message

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True, kw_only=True)
class GgufWheel:
    """A GGUF file that ships inside an installed Python package, de-quantised to float32.

    Args:
        name: short name of the model.
        package: importable package that holds the file; it is located, never imported.
        requirement: what to install, for the error message.
        filename: GGUF file inside the package.
        sha256: checksum of the file.
    """

    name: str
    package: str
    requirement: str
    filename: str
    sha256: str

    def identity(self) -> dict[str, str]:
        """Name and declared checksum; the file is hashed when it is loaded."""
        return {"name": self.name, "revision": self.filename, "sha256": self.sha256}

    def check(self) -> None:
        """Raise DataError, with the remedy, if the file is missing."""
        self._packaged.locate()

    def load(self) -> "Loaded":
        """Verify and convert; an ordinary float32 model and its tokenizer.

        Raises:
            DataError: if the file is missing or its checksum differs.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from effllm.modules.modeling.loading import load_whole

        file = self._packaged.verified()
        with _one_gguf_reader():
            model = load_whole(
                AutoModelForCausalLM,
                file.parent,
                f"model {self.name}",
                gguf_file=file.name,
                dtype="float32",
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, local_files_only=True
            )
        # transformers refuses to save a model that it believes to be quantised still.
        del model.config.quantization_config
        setattr(model, "hf_quantizer", None)  # noqa: B010 - not a declared attribute
        return model, tokenizer

    @property
    def _packaged(self) -> PackagedFile:
        requirement = f"--no-deps {self.requirement}"
        return PackagedFile(self.package, self.filename, self.sha256, requirement)


@contextmanager
def _one_gguf_reader() -> Iterator[None]:
    """Parse a GGUF file once: transformers parses it anew for config, weights and tokenizer."""
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(original)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        gguf.GGUFReader = original  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class PretrainedFolder:
    """Any causal language model of the hub, or of a local folder in the same format.

    Args:
        name: `owner/name` on the hub, or a label if `path` is given.
        revision: branch, tag or commit on the hub.
        path: local folder; nothing is fetched then.
        safetensors_only: refuse weights stored as pickles. If false, such weights are read with
            `weights_only=True`.
        trust_remote_code: run modelling code that comes with the weights.
    """

    name: str
    revision: str = "main"
    path: str | None = None
    safetensors_only: bool = True
    trust_remote_code: bool = False

    def identity(self) -> dict[str, str]:
        """Name and revision on the hub, or the content of the local folder.

        Raises:
            DataError: if the local folder holds no model that could be loaded.
        """
        if self.path is None:
            revision = resolved_commit(self.name, "model", self.revision)
            return {"name": self.name, "revision": revision, "sha256": ""}
        require_sound(
            self._folder,
            safetensors_only=self.safetensors_only,
            trust_remote_code=self.trust_remote_code,
        )
        return {"name": self.name, "revision": "local", "sha256": folder_digest(self._folder)}

    def check(self) -> None:
        """Raise DataError if the local folder, or the model on the hub, cannot be used."""
        if self.path is not None:
            self.identity()
            return
        names = require_on_hub(self.name, "model", self.revision, _REMEDY)
        problem = listing_problem(names, self.safetensors_only) if names else None
        if problem is None:
            config = configuration_on_hub(self.name, self.revision, _REMEDY)
            problem = config_problem(config, self.trust_remote_code, names or None)
        if problem:
            raise DataError(f"{self._label}: {problem}")

    def load(self) -> "Loaded":
        """Load in the stored precision.

        Raises:
            DataError: if the model cannot be reached, its weights are not whole, or its tokenizer
                belongs to another model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from effllm.modules.modeling.loading import load_whole, require_finite, require_matching

        where = self.name if self.path is None else str(self._folder)
        common: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        if self.path is None:
            common["revision"] = self.revision
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **common)
            model = load_whole(
                AutoModelForCausalLM,
                where,
                self._label,
                dtype="auto",
                use_safetensors=self.safetensors_only or None,
                **common,
            )
        except EffLLMError:
            raise
        except Exception as error:  # what libraries, and a model's own code, raise has no base
            raise DataError(f"{self._label} could not be loaded: {self._cause(error)}") from error
        require_matching(model, tokenizer, self._label)
        require_finite(model, self._label)
        return model, tokenizer

    @property
    def _folder(self) -> Path:
        return Path(str(self.path)).expanduser()

    @property
    def _label(self) -> str:
        return f"model {self.name}" if self.path is None else f"model folder {self._folder}"

    def _cause(self, error: Exception) -> str:
        """What went wrong and what to do, on one line."""
        words = " ".join(str(error).split()) or "no message"
        cause = f"{type(error).__name__}: {words[:_LONGEST]}{'…' if len(words) > _LONGEST else ''}"
        if "custom code" in cause:
            return f"it comes with its own code; model.trust_remote_code=true runs it ({cause})"
        if isinstance(error, ImportError):
            return cause  # names what to install
        if self.path is None and isinstance(error, OSError):
            return f"{cause}; {_REMEDY}"
        return f"{cause}; mend what transformers names, or fetch or convert the model again"


@dataclass(frozen=True, kw_only=True)
class TinyRandom:
    """A two-layer random model with a byte tokenizer; for tests and smoke runs only.

    Args:
        family: see `effllm.modules.modeling.tiny.tiny_config`.
        seed: of the initialisation.
    """

    family: Word
    seed: Seed = 0

    def identity(self) -> dict[str, str]:
        """Family and seed."""
        return {"name": f"tiny_{self.family}", "revision": f"seed{self.seed}", "sha256": ""}

    def check(self) -> None:
        """Nothing can be missing."""

    def load(self) -> "Loaded":
        """Build the model and the tokenizer.

        Raises:
            ConfigError: for an unknown family.
        """
        from effllm.modules.modeling.tiny import byte_tokenizer, tiny_model

        try:
            return tiny_model(self.family, self.seed), byte_tokenizer()
        except ValueError as error:
            raise ConfigError(f"model: {error}") from error


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a folder's files, in name order."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
