"""State of a training on disk, so that one that was killed goes on: plain arrays and a JSON text, no pickle."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from msgspec import Struct
from torch import Tensor, nn

from headwater.registry.files import replace_file

Array = npt.NDArray[np.generic]
_STATE = ("exp_avg", "exp_avg_sq")
_META = "meta"


class Standing(Struct, kw_only=True):
    """How far a training is. ``fingerprint`` is that of data, parameters and seed: another training does not go on from here."""

    fingerprint: str
    epoch: int = 0  # epochs that are done
    steps: int = 0
    seconds: float = 0.0
    rate: float = 0.0  # learning rate of the last step, before warm-up
    best_epoch: int = 0
    best_ndcg: float = -1.0
    best_hr: float = 0.0


def save_checkpoint(
    path: Path, standing: Standing, model: nn.Module, best: Mapping[str, Tensor], optimizer: torch.optim.AdamW
) -> None:
    """Swap the file at ``path`` in one step."""
    arrays: dict[str, Array] = {_META: np.frombuffer(msgspec.json.encode(standing), np.uint8)}
    for name, parameter in model.named_parameters():
        arrays[f"now.{name}"] = parameter.detach().cpu().numpy()
        arrays[f"best.{name}"] = best[name].cpu().numpy()
        for part in _STATE:
            arrays[f"{part}.{name}"] = optimizer.state[parameter][part].cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())


def load_checkpoint(
    path: Path, fingerprint: str, model: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.AdamW
) -> Standing | None:
    """Take over what ``path`` holds; ``None`` (and nothing is changed) when it is absent or of another training.

    A file that cannot be read counts as one of another training: it is replaced at the end of the first epoch.
    """
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            standing = msgspec.json.decode(stored[_META].tobytes(), type=Standing)
            if standing.fingerprint != fingerprint:
                return None
            arrays = {name: stored[name] for name in stored.files if name != _META}
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, msgspec.MsgspecError):
        return None
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[f"now.{name}"]))
            best[name] = torch.from_numpy(arrays[f"best.{name}"]).to(parameter.device)
            state = {part: torch.from_numpy(arrays[f"{part}.{name}"]).to(parameter.device) for part in _STATE}
            optimizer.state[parameter] = {"step": torch.tensor(float(standing.steps)), **state}
    return standing
