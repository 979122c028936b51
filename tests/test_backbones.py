"""Networks by name: their last map, for pictures of any size."""

from __future__ import annotations

import pytest

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from helpers.weights import lively
from torch import nn

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.position_embeddings import grid_embeddings
from imagenets.learning.networks.precision import fold_batch_norms
from imagenets.learning.networks.segmentation_network import SegmentationNetwork, kind_of
from imagenets.learning.pass_method.heads import HeadSizes, PassNetwork


def picture(height, width, count=1, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_a_resnet_gives_the_outputs_of_its_last_two_layers(name):
    backbone = make_backbone(name)
    network = backbone.network
    stem = [network.conv1, network.bn1, network.relu if name == "resnet18" else network.act1, network.maxpool]
    x = picture(65, 97)
    with torch.inference_mode():
        layer3 = torch.nn.Sequential(*stem, network.layer1, network.layer2, network.layer3)(x)
        layer4 = network.layer4(layer3)
        torch.testing.assert_close(backbone.maps(x), (layer3, layer4))
        torch.testing.assert_close(backbone(x), layer4)
    assert (backbone.channels, backbone.stride, backbone.fixed_size) == (512, 32, None)
    assert not any(key.startswith("fc") for key in network.state_dict())


@pytest.mark.parametrize(("name", "folded"), [("resnet50", True), ("timm/test_resnet", False)])
def test_folded_batch_norms_change_nothing_but_rounding(name, folded):
    network = lively(make_backbone(name))
    pictures = picture(128, 128, count=2)
    with torch.inference_mode():
        before = network(pictures)
        fold_batch_norms(network)
        after = network(pictures)
    left = sum(type(module) is nn.BatchNorm2d for module in network.modules())
    assert (left == 0) == folded
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_output_stride_16_is_torchvisions_dilation():
    plain = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    backbone = make_backbone("resnet50", output_stride=16)
    backbone.network.load_state_dict(plain.state_dict(), strict=False)
    x = picture(64, 96)
    with torch.inference_mode():
        expected = torch.nn.Sequential(*list(plain.children())[:-2])(x)
        torch.testing.assert_close(backbone(x), expected)
    assert backbone.stride == 16 and expected.shape[2:] == (4, 6)
    assert make_backbone("resnet18", output_stride=16)(x).shape[2:] == (4, 6)
    with pytest.raises(InputError, match="only ResNets"):
        make_backbone("vit_tiny_patch16_224", output_stride=16)
    with pytest.raises(InputError, match="resnet18d: its shortcuts pool"):
        make_backbone("resnet18d", output_stride=16)


SIZES = [(224, 224), (230, 238), (256, 341), (112, 448), (230, 224)]


@pytest.mark.parametrize(
    ("name", "covered", "sizes"),
    [
        ("vit_tiny_patch16_224", 1, SIZES),
        ("vit_b_32", 1, SIZES[1:3]),
        ("deit_tiny_distilled_patch16_224", 2, SIZES[:3]),
    ],
)
def test_a_vit_takes_pictures_of_any_size(name, covered, sizes):
    """What fills no patch is left out."""
    backbone = make_backbone(name)
    network, patch = backbone.network, backbone.stride
    positions = network.encoder.pos_embedding if name == "vit_b_32" else network.pos_embed
    nn.init.normal_(positions)
    original = positions.detach().clone()
    for size in sizes:
        grid = (size[0] // patch, size[1] // patch)
        x = picture(*size)
        cropped = x[:, :, : grid[0] * patch, : grid[1] * patch]
        with torch.inference_mode():
            positions.data = original
            found = backbone(x)
            positions.data = grid_embeddings(original, covered, grid, size, backbone.positions)
            if name == "vit_b_32":
                tokens = network.conv_proj(cropped).flatten(2).mT
                tokens = network.encoder(torch.cat([network.class_token, tokens], dim=1))
            else:
                network.patch_embed.strict_img_size = False
                tokens = network.forward_features(cropped)
        torch.testing.assert_close(found.flatten(2).mT, tokens[:, covered:], atol=2e-4, rtol=1e-4)
        assert found.shape == (1, backbone.channels, *grid)


@pytest.mark.parametrize(
    ("name", "channels", "stride", "fixed"),
    [
        ("mobilenet_v3_small", 576, 32, None), ("squeezenet1_1", 512, 16, None), ("swin_t", 768, 32, None),
        ("timm/swin_tiny_patch4_window7_224", 768, 32, (224, 224)), ("convnext_atto", 320, 32, None),
        ("mixer_s32_224", 512, 32, (224, 224)), ("vit_small_patch14_dinov2", 384, 14, None),
        ("vit_small_patch16_dinov3", 384, 16, None),
    ],
)  # fmt: skip
def test_other_families_give_their_last_map(name, channels, stride, fixed):
    backbone = make_backbone(name)
    assert (backbone.channels, backbone.stride, backbone.fixed_size) == (channels, stride, fixed)
    height, width = fixed or (128, 200)
    with torch.inference_mode():
        found = backbone(picture(height, width))
    assert found.shape[1] == channels
    assert all(abs(a - b / stride) <= 1 for a, b in zip(found.shape[2:], (height, width), strict=True))


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1"])
def test_attention_biases_are_those_of_the_file(name, tmp_path):
    """These networks keep, from the first pass in evaluation mode, what they have made of their biases."""
    own = timm.create_model(name).eval()
    for key, weight in own.named_parameters():
        if key.endswith("attention_biases"):
            nn.init.normal_(weight)
        if key.endswith("gamma"):  # of the layers, which would hide the attention
            nn.init.ones_(weight)
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    backbone = make_backbone(name)
    load_backbone(backbone, tmp_path / "weights.pth")
    x = picture(224, 224)
    with torch.inference_mode():
        found = backbone(x)
        expected = own.forward_features(x)
        expected = expected if expected.ndim == 4 else expected.mT.unflatten(2, found.shape[2:])
        torch.testing.assert_close(found, expected)
        # Weights that are loaded into a network that was in use.
        state = backbone.network.state_dict()
        reversed_biases = {k: -v if k.endswith("attention_biases") else v for k, v in state.items()}
        backbone.network.load_state_dict(reversed_biases)
        assert (backbone(x) - found).abs().max() > 1e-2 * found.abs().max()


def test_one_property_says_what_a_resnet_is():
    """legacy_seresnet18 has a layer4, but its stem is another: fine-tuned as any network, not for PASS."""
    assert all(make_backbone(name).is_resnet for name in ("resnet18", "timm/test_resnet", "seresnet18"))
    backbone = make_backbone("legacy_seresnet18")
    assert not backbone.is_resnet and kind_of(backbone) == "other"
    assert SegmentationNetwork(backbone, 3, "semi-supervised")(picture(64, 64)).shape == (1, 4, 2, 2)
    with pytest.raises(InputError, match="legacy_seresnet18: PASS needs the stages layer3 and layer4"):
        PassNetwork(backbone, HeadSizes(8, 4))
    with pytest.raises(InputError, match="only ResNets"):
        make_backbone("legacy_seresnet18", output_stride=16)


def test_drop_path_is_the_networks_own():
    network = make_backbone("vit_tiny_patch16_224", drop_path=0.1).network
    assert network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    of_torchvision = make_backbone("torchvision/efficientnet_b0", drop_path=0.3).network
    assert of_torchvision.features[7][0].stochastic_depth.p == pytest.approx(0.3 * 15 / 16)
    with pytest.raises(InputError, match="drop path"):
        make_backbone("resnet18", drop_path=0.1)


def test_unknown_names_are_told_with_near_ones():
    with pytest.raises(InputError, match=r"resnet17: neither .*near: .*resnet18"):
        make_backbone("resnet17")
    with pytest.raises(InputError, match="before the / stands"):
        make_backbone("keras/resnet18")
    nearest = {"facebook/dinov2-small": "vit_small_patch14_dinov2", "vit_tiny": "vit_tiny_patch16_224"}
    for name, near in nearest.items():
        with pytest.raises(InputError, match=rf"{name}: .*near: {near}, "):
            make_backbone(name)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "vit_tiny_patch16_224",
            {"layers": 13},
            "cannot join 13 layers: vit_tiny_patch16_224 has 12 blocks of tokens",
        ),
        (
            "vit_tiny_patch16_224",
            {"output_stride": 16},
            "only ResNets have an output stride to choose, 16 or 32",
        ),
        ("resnet18", {"output_stride": 8}, "only ResNets have an output stride to choose, 16 or 32"),
    ],
)
def test_layers_and_output_strides_that_a_network_lacks_are_refused(name, more, message):
    with pytest.raises(InputError, match=message):
        make_backbone(name, **more)


def test_what_a_network_has_by_itself_can_be_asked_for():
    assert make_backbone("resnet18", output_stride=32).stride == make_backbone("resnet18").stride == 32
    assert make_backbone("vit_tiny_patch16_224", layers=12).channels == 12 * 192
