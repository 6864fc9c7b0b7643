"""Where a run stands, on disk: one safetensors file, its header holding the rest as JSON.

A single file that is renamed into place: whenever the process is killed, the last whole one is found.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import one_line
from normscope.results import write_bytes
from normscope.training.network import plain_tensors
from normscope.training.tensor_files import encoded_tensors, read_tensors

STEP_QUANTITIES: tuple[str, ...] = ("loss", "correct", "gradient_norm")
"""What is recorded of each step: the mini-batch's loss, its images classified right, its gradient's norm."""


@dataclass
class Progress:
    """What a run has recorded so far."""

    steps: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STEP_QUANTITIES})
    """For each of `STEP_QUANTITIES` a number per step since the start."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """One row of results for each epoch that is over."""
    seconds: float = 0.0
    """Spent on the epoch that is not over, in all processes so far."""
    diverged: bool = False
    """Whether the last step's loss says so: the run is over."""
    ended_early: str = ""
    """Why the run is over before its last epoch, if it is: see `training.ending`."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is trained, whatever the number of epochs."""
        return self.diverged or bool(self.ended_early)

    @property
    def num_steps(self) -> int:
        """Steps of the optimizer since the start."""
        return len(self.steps["loss"])


def save_checkpoint(
    path: Path, identity: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the weights, the momentum and what was recorded; raises OutputError as `results.save` does.

    identity: what has to be the same for the run to go on with the same bits.
    """
    tensors = {f"net/{name}": tensor for name, tensor in plain_tensors(net.state_dict()).items()}
    tensors |= {f"momentum/{name}": tensor for name, tensor in plain_tensors(_momentum(net, optimizer)).items()}
    for name, values in progress.steps.items():
        tensors[f"steps/{name}"] = torch.tensor(values, dtype=torch.float64)
    header = {
        "identity": identity,
        "epochs": progress.epochs,
        "seconds": progress.seconds,
        "diverged": progress.diverged,
        "ended_early": progress.ended_early,
    }
    write_bytes(path, encoded_tensors(tensors, header))


def load_checkpoint(
    path: Path, identity: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Put network and optimizer where the checkpoint left them.

    None, and nothing is changed, where there is no checkpoint, or one that is damaged (which a warning says) or of
    another identity: the run then begins anew, since it could not end with the same bits.
    """
    if not path.exists():
        return None
    try:
        tensors, header = read_tensors(path)
        if header["identity"] != identity:
            return None
        steps = {name: tensor.tolist() for name, tensor in _under("steps/", tensors).items()}
        progress = Progress(
            steps, header["epochs"], header["seconds"], header["diverged"], header.get("ended_early", "")
        )
        # laid out in memory as its parameter is, as the optimizer itself would have made it
        momentum = {
            parameter: torch.empty_like(parameter).copy_(buffer)
            for name, buffer in _under("momentum/", tensors).items()
            for parameter in [net.get_parameter(name)]
        }
        weights = _under("net/", tensors)
        if _shapes(weights) != _shapes(net.state_dict()):
            raise ValueError("it is of another network")
        net.load_state_dict(weights)
    except Exception as error:
        warnings.warn(f"{path} is damaged ({one_line(error)}): the run begins anew", stacklevel=2)
        return None
    for parameter, buffer in momentum.items():
        optimizer.state[parameter]["momentum_buffer"] = buffer
    return progress


def _momentum(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    buffers = {name: optimizer.state.get(p, {}).get("momentum_buffer") for name, p in net.named_parameters()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
