"""Mixture-of-Experts speech recognition: streaming and offline, trained, measured and explained."""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_asr.runs.recognizer import Recognizer

__version__ = "0.1.0"


def load(path: str, **options: object) -> "Recognizer":
    """A trained model with its tokenizer and configuration, ready to transcribe (see `Recognizer.load`)."""
    from moe_asr.runs.recognizer import Recognizer

    return Recognizer.load(path, **options)  # type: ignore[arg-type]


class _TorchaudioWithoutExtension(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets `import torchaudio` succeed where its compiled extension cannot be loaded.

    torchaudio's Linux wheels link CUDA, so on a CPU-only torch the import raises OSError. The Python parts (Kaldi
    features, resampling, masking) need no extension: when the real loader fails, the flags that torchaudio itself uses
    for "not built" are set instead.
    """

    name = "torchaudio._extension"

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            self._real, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._real.exec_module(module)
        except (OSError, RuntimeError, ImportError) as error:
            reason = f"torchaudio's compiled extension could not be loaded here: {error}"

            def fail_if_no_align(function: object) -> object:
                def unavailable(*args: object, **kwargs: object) -> object:
                    raise RuntimeError(reason)

                return unavailable

            module.__dict__.update(
                _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=fail_if_no_align
            )


sys.meta_path.insert(0, _TorchaudioWithoutExtension())
