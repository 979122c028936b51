"""Files of weights, read without running code in them: what torch.save wrote, safetensors, and shards.

Files that hold no plain tensors (TorchScript, DCP, flat parameters of FSDP, ZeRO-3 …) are refused with the
command that converts them. docs/checkpoints.md has the forms that load.

Foreign Python objects beside the weights are left out. PyTorch's weights-only reader never imports a name: it
looks names up in a table, and refuses those that are not there. For the time of one load the table has an
inert stand-in for each name that the reader does not know. Source: torch.serialization, safe_globals.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from imagenets.common.errors import InputError
from imagenets.common.whole_files import refuse_pointer

Tensors = dict[str, torch.Tensor]

RANDOM = Path("none")  # in a checkpoint's place: random weights
_INDEX = ".index.json"
_SHARD = re.compile(r"^(?P<stem>.+)-\d{5}-of-(?P<number>\d{5})(?P<suffix>\.\w+)$")
_FLAT = re.compile(r"(^|\.)_?flat_param(_\d+)?$")
_SHARDED = re.compile(r"\bShardedTensor\b|\bDTensor\b")
# Segments of names that torch.compile, FSDP and activation checkpointing put in, at any place.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_UNKNOWN = re.compile(r"GLOBAL (\S+) was not an allowed global")
_DEFAULTDICT = "collections.defaultdict"
_MOST_NAMES = 1000  # more than any training script has classes


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
        return _of_branch(without_wrappers(found), self.branch, self.path)

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
    are left out, so that no code in the file runs. Raises InputError, naming the file and the cure, for
    anything else, OSError when there is no such file.
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
    if path.name.endswith("optim_states.pt"):  # DeepSpeed's weights lie beside it or, with ZeRO-3, within
        weights = path.with_name("mp_rank_00_model_states.pt")
        if not weights.exists():
            raise _zero3(path)
        raise InputError(f"{path}: the state of DeepSpeed's optimiser; name {weights}")
    content, left_out = _read_file(path)
    return Checkpoint(path, content, left_out, branch)


def _read_file(path: Path) -> tuple[dict[Any, Any], Counter[str]]:
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path), Counter()
    if path.suffix == ".npz":
        raise InputError(
            f'{path}: weights of JAX; convert them with timm: python -c "import timm, torch; m = timm.'
            f"create_model('NAME', num_classes=0); m.load_pretrained('{path}'); "
            "torch.save(m.state_dict(), 'weights.pth')\""
        )
    if is_torchscript(path):
        raise InputError(
            f"{path}: a TorchScript archive, which is code; where you trust it, save its weights: python -c "
            f"\"import torch; m = torch.jit.load('{path}', map_location='cpu').float(); "
            "torch.save(m.state_dict(), 'weights.pth')\""
        )
    try:
        content, left_out = _load_inert(path)
    except pickle.UnpicklingError as error:
        raise _refused_pickle(path, str(error)) from error
    except (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError) as error:
        raise _unreadable(path) from error
    if not isinstance(content, Mapping):
        kind = next(iter(left_out), type(content).__name__)
        raise InputError(f"{path}: holds no weights but a {kind}; {_save_weights(path)}")
    return dict(content), left_out


def is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive of TorchScript."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePath(name).name == "constants.pkl" for name in archive.namelist())


def _load_inert(path: Path) -> tuple[Any, Counter[str]]:
    """Read a file; also returns how many objects of which classes were left out, by full name.

    Raises what ``torch.load`` raises: UnpicklingError for objects that cannot be stood in for (subclasses of
    list and dict, names in ``os`` and ``sys``), others for damaged files.
    """
    made: Counter[str] = Counter()
    try:
        names = set(get_unsafe_globals_in_checkpoint(path)[:_MOST_NAMES])
    except (ValueError, RuntimeError, EOFError, IndexError, pickle.UnpicklingError):
        names = set()  # files that are no ZIP list no names: they are refused one after the other
    while True:
        made.clear()
        stand_ins: list[Any] = [(_stand_in(name, made), name) for name in sorted(names - {_DEFAULTDICT})]
        try:
            with safe_globals([*stand_ins, (lambda *_: {}, _DEFAULTDICT)]):  # whose factory is not called
                content = torch.load(path, map_location="cpu", weights_only=True)
            return content, made
        except pickle.UnpicklingError as error:
            refused = _UNKNOWN.search(str(error))
            if refused is None:
                raise
            name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
            if name in names or len(names) >= _MOST_NAMES:
                raise
            names.add(name)


def _stand_in(name: str, made: Counter[str]) -> type:
    class StandIn:
        """Takes the place of an object of the class ``name``, whatever it is made from, and keeps nothing."""

        __slots__ = ()

        def __new__(cls, *arguments: object) -> StandIn:
            made[name] += 1
            return super().__new__(cls)

        def __init__(self, *arguments: object) -> None:
            pass

        def __setstate__(self, state: object) -> None:
            """Drop the state: otherwise the reader would set attributes from it."""

    return StandIn


def _save_weights(path: Path) -> str:
    return (
        'save only the weights, where you trust the file: python -c "import torch; m = torch.load('
        f"'{path}', map_location='cpu', weights_only=False); torch.save(m.state_dict(), 'weights.pth')\""
    )


def _refused_pickle(path: Path, reason: str) -> InputError:
    """Say why PyTorch's reader refuses a file."""
    if re.search(r"operand (14\d|15[012])\b", reason):  # those that protocols 4 and 5 brought
        return InputError(
            f"{path}: was saved with another pickle protocol than PyTorch's own (2), and is not read; where "
            'you trust it, save it anew: python -c "import torch; torch.save(torch.load('
            f"'{path}', map_location='cpu', weights_only=False), 'weights.pth')\""
        )
    blocked = re.search(r"unsupported GLOBAL (\S+)|GLOBAL (\S+) was not", reason)
    said = re.search(r"^.*(Can only|reduce for|persistent).*$", reason, re.MULTILINE)
    if blocked:
        what = f"({blocked[1] or blocked[2]}) that could run code, and is not read"
    elif said:
        what = f"that cannot be left out ({said[0].strip()})"
    else:
        return _unreadable(path)
    return InputError(f"{path}: holds a Python object {what}; {_save_weights(path)}")


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


def _shards(index: Path) -> dict[str, Path]:
    """Which file has which tensor, all beside their index. Raises InputError for a file that is no index."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards = {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index}: no index of shards: it has no weight_map") from error
    if not shards or any(PurePath(shard).name != shard for shard in shards.values()):
        raise InputError(f"{index}: no index of shards: its weight_map names files elsewhere, or none")
    return {name: index.with_name(shard) for name, shard in shards.items()}


def _read_shards(index: Path) -> Tensors:
    """Join the tensors of all shards. Raises InputError when one is missing, or lacks a tensor."""
    where = _shards(index)
    shards = sorted(set(where.values()))
    absent = [shard.name for shard in shards if not shard.exists()]
    if absent:
        raise InputError(f"{index}: {len(absent)} of its {len(shards)} shards are missing ({some(absent)})")
    joined: Tensors = {}
    for shard in shards:
        joined |= named_tensors(_read_file(shard)[0])
    lacking = [name for name in where if name not in joined]
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
    shards = sorted(set(_shards(path).values())) if path.name.endswith(_INDEX) else []
    for part in (path, *shards):
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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


def without_wrappers(tensors: Tensors) -> Tensors:
    """Take the wrappers' segments out of all names; a name that is there already keeps them."""
    bare: Tensors = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        bare[name if short in bare else short] = tensor
    return bare


def _of_branch(tensors: Tensors, branch: str | None, path: Path) -> Tensors:
    """Select the tensors below ``branch``, a part of names (``student``, ``state_dict.model``); None: all."""
    if branch is None:
        return tensors
    step = re.compile(rf"(^|\.){re.escape(branch)}\.")
    chosen = {name: tensor for name, tensor in tensors.items() if step.search(name)}
    if not chosen:
        there = dict.fromkeys(name.partition(".")[0] for name in tensors)
        raise InputError(f"{path}: has no weights {branch}; there are {some(there, 8)}")
    return chosen


def some(names: Iterable[str], number: int = 3) -> str:
    """The first of many names."""
    shown = list(names)
    return ", ".join(shown[:number]) + (", …" if len(shown) > number else "")
