"""A network as a file that runs without us: ONNX, or a program of torch.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.errors import ModelError, NiwakiError
from niwaki.files import write_atomically
from niwaki.models._outputs import check
from niwaki.models._plain_copy import deep_copy
from niwaki.ownership import SIGNATURE
from niwaki.ranges import LENGTH, SEED, TOLERANCE, checked

__all__ = ["Format", "export"]

Format = Literal["onnx", "program"]
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


@checked(input_shape=LENGTH, tolerance=TOLERANCE, seed=SEED)
def export(
    model: nn.Module,
    path: str | Path,
    input_shape: Sequence[int],
    *,
    format: Format = "onnx",
    tolerance: float = 1e-4,
    seed: int = 0,
) -> None:
    """Write a network to a file, checked against the network before the file appears.

    The batch is dynamic; the file takes any number of samples. Inputs are called ``inputs``,
    outputs ``outputs``.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It stays as it is.
    path : str or Path
        Path of the file; an existing one is replaced.
    input_shape : sequence of int
        Shape of one sample, such as ``(3, 224, 224)``.
    format : {"onnx", "program"}
        ONNX, which needs the extra ``onnx``; or what `torch.export.save` writes and
        `torch.export.load` reads.
    tolerance : float
        Largest difference between the outputs of the file and of the network, in units of the
        network's largest output (of 1, if that is smaller).
    seed : int
        Seed of the random inputs that both are compared on, in two batches of different sizes.

    Raises
    ------
    ModelError
        A network in training mode, one that cannot be exported, or one that computes something
        else as a file.
    NiwakiError
        If the packages that ONNX needs are missing.
    ValueError
        For another format.

    Examples
    --------
    >>> niwaki.models.export(pruned.model, "smaller.onnx", (3, 224, 224))
    """
    if format == "onnx":
        _need_onnx()
    check(model)
    working = deep_copy(model).cpu()  # exporting sets hooks and flags for a moment
    batches = _batches(working, input_shape, seed)
    with torch.no_grad():
        expected = [working(batch.clone()) for batch in batches]
    program = _program(working, batches[0])

    def write(aside: Path) -> None:
        if format == "program":
            # In memory first: on a full disk, torch's own writer ends the whole process.
            buffer = BytesIO()
            torch.export.save(program, buffer, extra_files={SIGNATURE: ""})
            aside.write_bytes(buffer.getvalue())
            loaded = torch.export.load(aside).module()
            with torch.no_grad():
                found = [loaded(batch) for batch in batches]
        else:
            _write_onnx(program, aside)
            found = _run_onnx(aside, batches)
        for one, other in zip(found, expected, strict=True):
            _compare(one, other, tolerance, f"the {format} file of {type(model).__name__}")

    write_atomically(path, write)


def _need_onnx() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NiwakiError(
            f"ONNX needs {', '.join(missing)}: pip install niwaki[onnx]; or export a program of "
            "torch with format='program'"
        )


def _batches(model: nn.Module, shape: Sequence[int], seed: int) -> list[Tensor]:
    """Random inputs in two batches, neither of one sample, which exporting would hold on to."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return [torch.randn(n, *shape, generator=generator).to(dtype) for n in (2, 3)]


def _program(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet():
            return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be exported: torch.export cannot follow it for any "
            f"number of samples ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    try:
        with _quiet():
            written = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["inputs"],
                output_names=["outputs"],
                verbose=False,
            )
            assert written is not None
            model = written.model_proto
            model.producer_name = f"{model.producer_name}, {SIGNATURE}"
            content = model.SerializeToString()
    except Exception as error:
        raise ModelError(
            f"the network cannot be written as ONNX ({type(error).__name__}: {_first_line(error)})"
        ) from error
    path.write_bytes(content)


def _run_onnx(path: Path, batches: Sequence[Tensor]) -> list[Tensor]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = [session.run(None, {"inputs": batch.numpy()})[0] for batch in batches]
    except Exception as error:  # its errors have no base of their own
        raise ModelError(
            f"onnxruntime cannot run the network in {batches[0].dtype} ({_first_line(error)}): "
            "export it in single precision, model.float()"
        ) from error
    return [torch.from_numpy(output) for output in found]


def _compare(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    if found.shape != expected.shape:
        raise ModelError(
            f"{what} gives outputs of shape {tuple(found.shape)}, the network "
            f"{tuple(expected.shape)}"
        )
    difference = float((found - expected).abs().max())
    if not difference <= tolerance * max(1.0, float(expected.abs().max())):  # nor NaN
        raise ModelError(
            f"{what} differs from the network by {difference:.3g}, more than tolerance = "
            f"{tolerance:.3g} allows; nothing was written"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks on its own deprecations and steps to itself."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
