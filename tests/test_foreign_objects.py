"""Files that hold Python objects: tensors are read, and nothing in the file runs, is imported or stays."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import sys
import zipfile
from pathlib import PosixPath

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from imagenets.common.errors import InputError
from imagenets.learning.networks.checkpoint_files import read_checkpoint

MAGIC = 0x1950A86A20F9469CFC6C  # of files that are no ZIPs


class Config:
    """As OmegaConf's: attributes, and a way of its own to be restored."""

    def __init__(self, **values):
        self.__dict__["_content"] = values

    def __getstate__(self):
        return {"_content": self._content, "_parent": None}

    def __setstate__(self, state):
        self.__dict__.update(state)


def zipped(pickled):
    """A file of torch.save with another pickle."""
    plain, content = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.ones(2)}, plain)
    with zipfile.ZipFile(plain) as given, zipfile.ZipFile(content, "w") as made:
        for item in given.infolist():
            is_pickle = item.filename.endswith("data.pkl")
            made.writestr(item.filename, pickled if is_pickle else given.read(item))
    return content.getvalue()


def legacy(pickled):
    before = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True, "type_sizes": {}})]
    return b"".join([*before, pickled, pickle.dumps([], 2)])


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_tensors_are_read_beside_foreign_objects(new, tmp_path):
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half()}
    content = {
        "state_dict": weights,
        "args": argparse.Namespace(lr=0.1),
        "config": Config(lr=0.1, deep=Config(path=PosixPath("/data"))),
        "history": [Config(values=np.arange(3.0), methods=collections.defaultdict(list, mean=[1]))],
        "random": np.random.default_rng(0).bit_generator.state | {"old": np.random.get_state()},
        "score": np.float64(0.5),
        "counts": collections.Counter("abba"),
        "default": collections.defaultdict(list, {"k": [1]}),
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    read = read_checkpoint(tmp_path / "x.pth")
    assert all(torch.equal(read.tensors[f"state_dict.{name}"], value) for name, value in weights.items())
    assert read.content["counts"] == content["counts"] and read.content["default"] == {"k": [1]}
    assert read.left_out[f"{__name__}.Config"] == 3 and read.left_out["argparse.Namespace"] == 1
    assert read.left_out[f"{PosixPath.__module__}.PosixPath"] == 1
    assert f"left out: {read.left_out.total()} Python objects (" in read.left_out_line
    assert not vars(read.content["config"].__class__).get("_content")


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def payloads(canary):
    """Pickles that would touch the file ``canary``, import ``this``, or leave an attribute behind."""
    touch = text(f"touch {canary}")
    code = text(f"__import__('pathlib').Path({str(canary)!r}).touch()")
    state = b"(N}" + text("evil") + text("x") + b"st"  # (None, {"evil": "x"}): the state of slots
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("../../etc/passwd") + text("cpu")
    thing, call = b"cevil\nThing\n", code + b"\x85R"
    bodies = {
        "os.system": b"cos\nsystem\n" + touch + b"\x85R",
        "posix.system": b"cposix\nsystem\n" + touch + b"\x85R",
        "subprocess": b"csubprocess\ncall\n" + touch + b"\x85R",
        "eval": b"cbuiltins\neval\n" + call,
        "eval of Python 2": b"c__builtin__\neval\n" + call,
        "eval by INST": b"(" + code + b"ibuiltins\neval\n",
        "eval by OBJ": b"(cbuiltins\neval\n" + code + b"o",
        "eval by NEWOBJ": b"cbuiltins\neval\n" + code + b"\x85\x81",
        "eval by NEWOBJ_EX": b"cbuiltins\neval\n" + code + b"\x85}\x92",
        "eval by STACK_GLOBAL": b"\x8c\x08builtins\x8c\x04eval\x93" + call,
        "dotted": b"cbuiltins\neval.__call__\n" + call,
        "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n" + text("__call__") + b"tR" + call,
        "attrgetter": b"coperator\nattrgetter\n" + text("system") + b"\x85Rcos\nname\n\x85R",
        "map in a list": b"cbuiltins\nlist\n(cbuiltins\nmap\n(cbuiltins\neval\n]" + code + b"atRtR",
        "import": b"cthis\ns\n",
        "import by a call": b"cimportlib\nimport_module\n" + text("this") + b"\x85R",
        "torch.load": b"ctorch\nload\n" + text(str(canary)) + b"\x85R",
        "state of a class": b"ccollections\nOrderedDict\n" + state + b"b",
        "state of a function": b"ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b",
        "state of a stand-in": thing + b")R" + state + b"b",
        "class of a stand-in": thing + state + b"b",
        "__class__": thing + b")R(N}" + text("__class__") + b"cevil\nOther\nstb",
        "__setstate__": thing + b")R}" + text("__setstate__") + b"cbuiltins\neval\nsb" + code + b"b",
        "a list's subclass": b"cevil\nList\n)R(" + code + b"e",
        "a dict's subclass": b"cevil\nDict\n)R(" + code + code + b"u",
        "an extension": b"\x82\x01" + call,
        "a foreign persistent id": b"(" + text("module") + code + b"tQ",
        "a storage elsewhere": storage + b"K\x04tQ",
        "truncated": b"cbuiltins\neval\n(",
    }
    return {name: b"\x80\x02" + body + b"." for name, body in bodies.items()}


NAMES = list(payloads("canary"))


def what_stays():
    """All that a load could leave behind."""
    functions = (torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter)
    return (
        set(sys.modules) & {"this", "evil", "antigravity"},
        [(sorted(vars(function)), function.__defaults__) for function in functions],
        sorted(vars(collections.OrderedDict)),
        sorted(vars(collections.Counter)),
        sorted(vars(torch.nn.Parameter)),
        set(torch.serialization.get_safe_globals()),
    )


@pytest.mark.parametrize("form", [zipped, legacy])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_malicious_file_runs_or_stays(name, form, tmp_path):
    canary = tmp_path / "canary"
    path = tmp_path / "x.pth"
    path.write_bytes(form(payloads(canary)[name]))
    before = what_stays()
    with pytest.raises(InputError, match=r"x\.pth: "):
        read_checkpoint(path)  # what is read is no dict
    assert not canary.exists() and what_stays() == before


@pytest.mark.parametrize("form", [zipped, legacy])
def test_payloads_would_run_in_pickle(form, tmp_path):
    """Otherwise the test above could not fail."""
    pickle.loads(payloads(tmp_path / "canary")["eval"])
    assert (tmp_path / "canary").exists()
    path = tmp_path / "y.pth"
    path.write_bytes(form(payloads(tmp_path / "other")["os.system"]))
    torch.load(path, weights_only=False)
    assert (tmp_path / "other").exists()


def test_a_refusal_says_what_to_do(tmp_path):
    path = tmp_path / "x.pth"

    def refused(message):
        with pytest.raises(InputError, match=message):
            read_checkpoint(path)

    path.write_bytes(zipped(payloads(tmp_path / "canary")["os.system"]))
    refused(r"\(os\.system\) that could run code.*torch\.save\(m\.state_dict\(\)")
    torch.save({"w": torch.ones(2), "l": PosixPath("/x")}, path, pickle_protocol=4)
    refused("another pickle protocol")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(r"holds no weights but a torch\.nn\.modules\.linear\.Linear")
