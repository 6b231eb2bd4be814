"""Files that ship inside installed Python packages: located and checked, never imported."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from effllm.modules.errors import DataError


@dataclass(frozen=True)
class PackagedFile:
    """One file of one package.

    Args:
        package: importable package that holds the file.
        filename: path inside the package.
        sha256: declared checksum.
        requirement: what pip installs, with its options, for error messages.
    """

    package: str
    filename: str
    sha256: str
    requirement: str

    def locate(self) -> Path:
        """Path of the file.

        Raises:
            DataError: with the remedy, if it is not installed.
        """
        spec = importlib.util.find_spec(self.package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            file = Path(folder) / self.filename
            if file.is_file():
                return file
        raise DataError(
            f"file {self.filename} of package {self.package} is not installed; run "
            f"`pip install {self.requirement}`"
        )

    def verified(self) -> Path:
        """Path of the file, whose content is what was declared.

        Raises:
            DataError: with the remedy, if it is not installed or differs.
        """
        file = self.locate()
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != self.sha256:
            raise DataError(
                f"{file.name}: expected sha256 {self.sha256[:12]}…, found {found[:12]}…; reinstall "
                f"with `pip install --force-reinstall {self.requirement}`"
            )
        return file
