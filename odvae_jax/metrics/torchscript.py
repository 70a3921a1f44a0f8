"""TorchScript files, which are programs: they run only if the caller says that they are trusted."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from odvae_jax.files import one_line, printable
from odvae_jax.metrics.weights import digest_of_files


class TorchScriptNetwork:
    """A network as a TorchScript file, which PyTorch runs on the CPU.

    PyTorch must be installed. Any TorchScript file is a program, which can do whatever the user may
    do. So it is refused unless the caller says that it is trusted.

    Args:
      path: the path of the file.
      trust_torchscript: whether the file comes from somebody whom you trust, so that it may run.

    Attributes:
      expected: the usual name of such a file.
      otherwise: what happens without such a file, for errors.
      name: the path, as text that can be printed.
      digest: hexadecimal digits that tell the file from other files.

    Raises:
      FileNotFoundError: if there is no such file, or PyTorch is not installed.
      ValueError: if it is not trusted, or is no TorchScript file.
    """

    expected: ClassVar[str]
    otherwise: ClassVar[str]

    def __init__(self, path: str | os.PathLike, *, trust_torchscript: bool = False):
        self.name = printable(path)
        self._network = _loaded(
            path,
            trust_torchscript=trust_torchscript,
            expected=self.expected,
            otherwise=self.otherwise,
        )
        self.digest = digest_of_files(path)


def _loaded(
    path: str | os.PathLike, *, trust_torchscript: bool, expected: str, otherwise: str
) -> Any:
    """Loads a TorchScript file for the CPU. PyTorch must be installed.

    Any TorchScript file is a program, which can do whatever the user may do.

    Args:
      path: the path of the file.
      trust_torchscript: whether the file comes from somebody whom you trust, so that it may run.
      expected: the usual name of such a file, for the error.
      otherwise: what happens without such a file, for the error.

    Returns:
      The network, in PyTorch's mode for evaluation.

    Raises:
      FileNotFoundError: if there is no such file, or PyTorch is not installed.
      ValueError: if it is not trusted, or is no TorchScript file.
    """
    name = printable(path)
    if not trust_torchscript:
        raise ValueError(
            f"{name} is TorchScript: a program, which can do whatever you may do here. If you "
            "trust whoever made it, say so with --trust-torchscript (in Python "
            f"trust_torchscript=True); {otherwise}."
        )
    try:
        import torch
    except ImportError as error:
        raise FileNotFoundError(f"{name} needs PyTorch: pip install torch.") from error
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{name} does not exist; expected {expected}.")
    try:
        return torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:  # a damaged file can raise anything
        reason = one_line(Exception(str(error).strip().split("\n")[0]))
        raise ValueError(f"{name} is no TorchScript file: {reason}.") from error
