"""TorchScript files, which are programs: they run only if the caller says that they are trusted."""

from __future__ import annotations

import os
from typing import Any

from odvae_jax.files import one_line, printable


def load_torchscript(
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
