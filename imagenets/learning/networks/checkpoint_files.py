"""Files of weights, read without running code in them: what torch.save wrote, safetensors, and shards.

Files that hold no plain tensors (TorchScript, DCP, flat parameters of FSDP, ZeRO-3 …) are refused with the
command that converts them. docs/checkpoints.md has the forms that load.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import torch

from imagenets.common.errors import InputError
from imagenets.common.whole_files import refuse_pointer
from imagenets.learning.networks.foreign_objects import load_inert
from imagenets.learning.networks.wrappers import of_branch, without_wrappers

Tensors = dict[str, torch.Tensor]

RANDOM = Path("none")  # in a checkpoint's place: random weights
_INDEX = ".index.json"
_SHARD = re.compile(r"^(?P<stem>.+)-\d{5}-of-(?P<number>\d{5})(?P<suffix>\.\w+)$")
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
_SHARDED = re.compile(r"\bShardedTensor\b|\bDTensor\b")
_SHOWN = 3


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds; ``left_out`` counts, by class, the foreign Python objects that were not read.

    ``branch`` is the copy that the user chose among several, a part of the tensors' names.
    """

    path: Path
    content: dict[Any, Any]
    left_out: Counter[str] = field(default_factory=Counter)
    branch: str | None = None

    @property
    def tensors(self) -> Tensors:
        """All tensors, or those of the branch, by their full names without wrappers.

        Raises InputError where a training over many devices stored parts of tensors, with the cure, and
        where there is no such branch.
        """
        found = named_tensors(self.content)
        _refuse_parts_of_tensors(self.path, found, self.left_out)
        return of_branch(without_wrappers(found), self.branch, self.path)

    @property
    def left_out_line(self) -> str:
        """Say which objects were left out, or nothing: ``; left out: 3 Python objects (…)``."""
        number = self.left_out.total()
        if not number:
            return ""
        names = [f"{name} {count}" for name, count in self.left_out.most_common()]
        return f"; left out: {number} Python object{'s' * (number > 1)} ({some(names)})"


def read_checkpoint(path: Path | str, branch: str | None = None) -> Checkpoint:
    """Read a file of weights, on the CPU: from ``torch.save``, ``.safetensors``, or an index of shards.

    ``branch`` is the copy to take where there are several (``student``, ``model``). Foreign Python objects
    are left out (``foreign_objects``), so that no code in the file runs. Raises
    InputError, naming the file and the cure, for anything else, OSError when there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise _folder(path)
    with path.open("rb") as file:  # a missing file raises OSError, as everywhere
        file.read(1)
    if path.name.endswith(_INDEX):
        return Checkpoint(path, _read_shards(path), branch=branch)
    if path.name == ".metadata" or path.suffix == ".distcp":
        raise _distributed_checkpoint(path.parent)
    _refuse_shard(path)
    if path.name.endswith("optim_states.pt"):
        raise _optimiser_of_deepspeed(path)
    return replace(_read_file(path), branch=branch)


def _read_file(path: Path) -> Checkpoint:
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return Checkpoint(path, _read_safetensors(path))
    if path.suffix == ".npz":
        raise InputError(
            f'{path}: weights of JAX; convert them with timm: python -c "import timm, torch; m = timm.'
            f"create_model('NAME', num_classes=0); m.load_pretrained('{path}'); "
            "torch.save(m.state_dict(), 'weights.pth')\""
        )
    _refuse_torchscript(path)
    try:
        content, left_out = load_inert(path)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from error
    except (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, Mapping):
        kind = next(iter(left_out), type(content).__name__)
        raise InputError(f"{path}: holds no weights but a {kind}; {_save_weights(path)}")
    return Checkpoint(path, dict(content), left_out)


def _save_weights(path: Path) -> str:
    return (
        'save only the weights, where you trust the file: python -c "import torch; m = torch.load('
        f"'{path}', map_location='cpu', weights_only=False); torch.save(m.state_dict(), 'weights.pth')\""
    )


def _refused_pickle(path: Path, reason: str) -> InputError:
    """Say why PyTorch's reader refuses a file."""
    blocked = re.search(r"unsupported GLOBAL (\S+)|GLOBAL (\S+) was not", reason)
    if blocked:
        name = blocked[1] or blocked[2]
        return InputError(
            f"{path}: holds a Python object ({name}) that could run code, and is not read; "
            f"{_save_weights(path)}"
        )
    if re.search(r"operand (14\d|15[012])\b", reason):  # those that protocols 4 and 5 brought
        return InputError(
            f"{path}: was saved with another pickle protocol than PyTorch's own (2), and is not read; where "
            'you trust it, save it anew: python -c "import torch; torch.save(torch.load('
            f"'{path}', map_location='cpu', weights_only=False), 'weights.pth')\""
        )
    said = re.search(r"^.*(Can only|reduce for|persistent).*$", reason, re.MULTILINE)
    if said:
        return InputError(
            f"{path}: holds a Python object that cannot be left out ({said[0].strip()}); "
            f"{_save_weights(path)}"
        )
    return _unreadable(path)


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path}: cannot be read as weights; is it whole? Checkpoints are what "
        "torch.save(model.state_dict(), FILE) saves, or .safetensors"
    )


def _folder(path: Path) -> InputError:
    """Say which file of a folder to name instead."""
    if (path / ".metadata").exists():
        return _distributed_checkpoint(path)
    if (path / "zero_to_fp32.py").exists():
        return _zero3(path)
    indices = sorted(path.glob(f"*{_INDEX}"))
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
    there = next(iter(indices + files), None)
    if there is not None:
        return InputError(f"{path}: a folder; name {there}")
    shard = next((file.name for file in sorted(path.iterdir()) if _SHARD.match(file.name)), None)
    if shard is not None:
        return InputError(f"{path}: a folder with shards ({shard}) but without their index (*{_INDEX})")
    return InputError(f"{path}: a folder; name a file of weights, of a run here {path / 'last.pth'}")


def _distributed_checkpoint(folder: Path) -> InputError:
    return InputError(
        f"{folder}: a distributed checkpoint (DCP); where you trust it, make one file of it: python -m "
        f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth"
    )


def _zero3(folder: Path) -> InputError:
    return InputError(
        f"{folder}: DeepSpeed's ZeRO-3, whose weights lie in parts; make one file of them by the script that "
        "DeepSpeed put into the run's folder: python zero_to_fp32.py . weights.pth"
    )


def _optimiser_of_deepspeed(path: Path) -> InputError:
    """Say where DeepSpeed has the weights: beside its optimiser's state or, with ZeRO-3, within it."""
    weights = path.with_name("mp_rank_00_model_states.pt")
    if weights.exists():
        return InputError(f"{path}: the state of DeepSpeed's optimiser; name {weights}")
    return _zero3(path)


def _refuse_torchscript(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = {PurePath(name).name for name in archive.namelist()}
    if "constants.pkl" in names:
        raise InputError(
            f"{path}: a TorchScript archive, which is code; where you trust it, save its weights: python -c "
            f"\"import torch; m = torch.jit.load('{path}', map_location='cpu').float(); "
            "torch.save(m.state_dict(), 'weights.pth')\""
        )


def _refuse_parts_of_tensors(path: Path, tensors: Tensors, left_out: Counter[str]) -> None:
    flat = [name for name in tensors if _FLAT.search(name)]
    sharded = [name for name in left_out if _SHARDED.search(name)]
    if flat or sharded:
        raise InputError(
            f"{path}: parts of tensors as FSDP holds them ({some(flat or sharded)}); save whole ones from "
            "the training: with FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT): "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    if tensors and sum(not tensor.numel() for tensor in tensors.values()) > len(tensors) / 2:
        raise _zero3(path)


def _read_safetensors(path: Path) -> dict[Any, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(f"{path}: needs safetensors: bash setup.sh methods") from error
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}); is it whole?") from error


def _refuse_shard(path: Path) -> None:
    """Refuse one shard of many: it lacks tensors."""
    shard = _SHARD.match(path.name)
    if shard is None or int(shard["number"]) < 2:
        return
    index = path.with_name(f"{shard['stem']}{shard['suffix']}{_INDEX}")
    where = f"name their index, {index}" if index.exists() else f"their index, {index.name}, is not beside it"
    raise InputError(f"{path}: one of {int(shard['number'])} shards; {where}")


def _shards(index: Path) -> list[Path]:
    """Files that an index names, all beside it. Raises InputError for a file that is no index."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        inside = all(isinstance(name, str) and PurePath(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of shards: it has no weight_map") from error
    if not inside or not names:
        raise InputError(f"{index}: no index of shards: its weight_map names files elsewhere, or none")
    return [index.with_name(name) for name in sorted(names)]


def _read_shards(index: Path) -> Tensors:
    """Join the tensors of all shards. Raises InputError when one is missing, or lacks a tensor."""
    shards = _shards(index)
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise InputError(f"{index}: {len(absent)} of its {len(shards)} shards are missing ({some(absent)})")
    joined: Tensors = {}
    for shard in shards:
        joined |= named_tensors(_read_file(shard).content)
    lacking = [name for name in json.loads(index.read_text())["weight_map"] if name not in joined]
    if lacking:
        raise InputError(f"{index}: its shards lack {len(lacking)} tensors ({some(lacking)})")
    return joined


def weights_digest(path: Path | str, branch: str | None = None) -> str:
    """What identifies weights in the record of a run: the file's digest, and the branch if one was chosen."""
    return file_digest(path) + (f" {branch}" if branch else "")


def file_digest(path: Path | str) -> str:
    """Digest of a file's bytes, 32 hexadecimal digits; of an index of shards, of the shards' as well.

    Of RANDOM its name. OSError when they cannot be read.
    """
    path = Path(path)
    if path == RANDOM:
        return str(RANDOM)
    digest = hashlib.blake2b(digest_size=16)
    for part in (path, *(_shards(path) if path.name.endswith(_INDEX) else ())):
        for block in _blocks(part):
            digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def named_tensors(content: Mapping[Any, Any]) -> Tensors:
    """All tensors of a checkpoint by their full names: nested names are joined by dots."""
    found: Tensors = {}

    def walk(part: Mapping[Any, Any], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}{key}"] = value
            elif isinstance(value, Mapping) and key != "optimizer":
                walk(value, f"{prefix}{key}.")

    walk(content, "")
    return found


def some(names: list[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
