"""The baseline with a backbone: torchvision's models, checkpoints as people have them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torchvision
from test_kmeans import CLASS_COUNT, FOLDERS, clusters_by_name, make_set, options

from imagenets.common.errors import InputError
from imagenets.learning.backbones import build, load_backbone, pooled
from methods import kmeans


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.fixture
def checkpoint(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def batch_of(count=2):
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 256, (count, 224, 224, 4)).astype(np.uint8)
    batch[..., 3] = 0
    batch[:, 40:150, 60:224, 3] = 255
    return batch


def test_features_are_the_mean_of_the_last_map_over_the_foreground(model, checkpoint):
    batch = batch_of()
    features = load_backbone("resnet18", checkpoint)
    found = features.finish(list(batch))
    body = torch.nn.Sequential(*list(model.children())[:-2])
    pixels = batch[..., :3].astype(np.float32) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        maps = body(torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
    share = (batch[..., 3] / 255).reshape(2, 7, 32, 7, 32).mean(axis=(2, 4))
    expected = (maps * share[:, None]).sum(axis=(2, 3))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("mobilenet_v3_small", 576), ("squeezenet1_1", 512), ("swin_t", 768), ("vit_b_32", 768)],
)
def test_the_last_map_is_found_in_other_families(name, channels):
    found = pooled(build(name), batch_of(1))
    assert found.shape == (1, channels)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_map_with_channels_last_and_tokens_are_read_right():
    from imagenets.learning.backbones import as_map

    wanted = torch.arange(2 * 5 * 3 * 3).reshape(2, 5, 3, 3)
    tokens = torch.cat([torch.zeros(2, 1, 5), wanted.flatten(2).transpose(1, 2)], dim=1)
    assert (as_map(wanted) == wanted).all()
    assert (as_map(wanted.permute(0, 2, 3, 1)) == wanted).all()
    assert (as_map(tokens) == wanted).all()


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module", "both", "headless", "projector"])
def test_checkpoints_as_people_have_them(model, checkpoint, tmp_path, wrap):
    weights = model.state_dict()
    prefixed = {f"module.{key}": value for key, value in weights.items()}
    headless = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    content = {
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights},
        "module": prefixed,
        "both": {"state_dict": prefixed},
        "headless": headless,
        "projector": headless | {"projector.0.weight": torch.zeros(3, 3), "fc.weight": torch.zeros(7, 512)},
    }[wrap]
    torch.save(content, tmp_path / "other.pth")
    expected = load_backbone("resnet18", checkpoint).finish(list(batch_of(1)))
    found = load_backbone("resnet18", tmp_path / "other.pth").finish(list(batch_of(1)))
    np.testing.assert_array_equal(found, expected)


class Evil:
    def __reduce__(self):
        return (print, ("code of a checkpoint has run",))


def test_checkpoints_that_do_not_fit_are_refused(model, checkpoint, tmp_path, capsys):
    for name, message in (
        ("resnet34", "no weights of resnet34: .* missing"),
        ("resnet50", "of another shape"),
        ("resnet17", "near: .*resnet18"),
    ):
        with pytest.raises(InputError, match=message):
            load_backbone(name, checkpoint)
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "resnet34.pth")
    with pytest.raises(InputError, match="too many"):
        load_backbone("resnet18", tmp_path / "resnet34.pth")
    (tmp_path / "text.pth").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes(checkpoint.read_bytes()[:10_000])
    for name in ("text", "list", "evil", "cut"):
        with pytest.raises(InputError, match=f"{name}.pth"):
            load_backbone("resnet18", tmp_path / f"{name}.pth")
    assert "has run" not in capsys.readouterr().out


def test_a_run_with_a_backbone(checkpoint, tmp_path, monkeypatch):
    truth = make_set(tmp_path / "save" / "ImageNetS50", FOLDERS, train=3, validation=2)
    arguments = options(
        tmp_path / "save", tmp_path / "out", "--backbone", "resnet18", "--checkpoint", checkpoint
    )
    monkeypatch.setattr(sys, "argv", ["kmeans.py", *map(str, arguments)])
    kmeans.main()
    found = clusters_by_name(tmp_path / "out" / "validation")
    assert set(found) == set(truth) and set(found.values()) <= set(range(1, CLASS_COUNT + 1))
    assert np.load(tmp_path / "out" / "centres.npy").shape == (CLASS_COUNT, 512)
