"""Networks by name: their last map, for pictures of any size."""

from __future__ import annotations

import pytest

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

import torch
from torch import nn
from torch.nn.functional import interpolate

from imagenets.common.errors import InputError
from imagenets.learning.networks.backbones import make_backbone
from imagenets.learning.networks.batch_norm_folding import fold_batch_norms
from imagenets.learning.networks.checkpoints import load_backbone
from imagenets.learning.networks.position_embeddings import grid_embeddings, resized
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


@pytest.mark.parametrize(
    ("name", "folded"),
    [("resnet18", True), ("resnet50", True), ("timm/test_resnet", False)],
)
def test_folded_batch_norms_change_nothing_but_rounding(name, folded):
    torch.manual_seed(0)
    network = make_backbone(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, 0, 0.1)
    pictures = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        before = network(pictures)
        fold_batch_norms(network)
        after = network(pictures)
    left = sum(type(module) is nn.BatchNorm2d for module in network.modules())
    assert (left == 0) == folded
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_batch_norms_of_other_networks_stay():
    """There a norm that is named behind a convolution need not be the one that takes its output."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    fold_batch_norms(network)
    assert type(network[1]) is nn.BatchNorm2d


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


def slow_vit(network, x):
    """A plain ViT of timm, patch by patch; its last norm is on the patch tokens alone."""
    patch = network.patch_embed.proj.weight.shape[-1]
    rows, columns = x.shape[2] // patch, x.shape[3] // patch
    weight, bias = network.patch_embed.proj.weight.flatten(1), network.patch_embed.proj.bias
    tokens = [
        weight @ x[0, :, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].flatten() + bias
        for r in range(rows)
        for c in range(columns)
    ]
    side = 14
    positions = network.pos_embed[0]
    grid = positions[1:].T.reshape(1, -1, side, side)
    if rows * columns != side**2 or x.shape[2] != x.shape[3]:
        grid = interpolate(grid, scale_factor=((rows + 0.1) / side, (columns + 0.1) / side), mode="bicubic")
    tokens = torch.stack(tokens) + grid[0].flatten(1).T
    tokens = torch.cat([network.cls_token[0] + positions[:1], tokens])[None]
    for block in network.blocks:
        tokens = block(tokens)
    return network.norm(tokens[:, 1:]).transpose(1, 2).reshape(1, -1, rows, columns)


@pytest.mark.parametrize("size", [(224, 224), (230, 238), (256, 341), (341, 256), (112, 448), (230, 224)])
def test_a_vit_takes_pictures_of_any_size(size):
    torch.manual_seed(0)
    backbone = make_backbone("vit_tiny_patch16_224")
    torch.nn.init.normal_(backbone.network.pos_embed)
    x = picture(*size)
    with torch.inference_mode():
        found = backbone(x)
        torch.testing.assert_close(found, slow_vit(backbone.network, x), atol=2e-4, rtol=1e-4)
        if size == (224, 224):
            features = backbone.network.forward_features(x)[:, 1:]
            torch.testing.assert_close(found.flatten(2).transpose(1, 2), features)


@pytest.mark.parametrize("name", ["vit_b_32", "deit_tiny_distilled_patch16_224"])
def test_other_vits_give_at_their_own_size_what_the_library_gives(name):
    backbone = make_backbone(name)
    x = picture(224, 224)
    with torch.inference_mode():
        found = backbone(x).flatten(2).transpose(1, 2)
        if name == "vit_b_32":
            network = backbone.network
            tokens = torch.cat([network.class_token, network._process_input(x)], dim=1)
            expected = network.encoder(tokens)[:, 1:]
        else:
            expected = backbone.network.forward_features(x)[:, 2:]
        torch.testing.assert_close(found, expected)
        grid = 256 // backbone.stride, 341 // backbone.stride
        assert backbone(picture(256, 341)).shape == (1, backbone.channels, *grid)


@pytest.mark.parametrize(
    ("name", "channels", "stride", "fixed"),
    [
        ("mobilenet_v3_small", 576, 32, None),
        ("squeezenet1_1", 512, 16, None),
        ("swin_t", 768, 32, None),
        ("timm/swin_tiny_patch4_window7_224", 768, 32, (224, 224)),
        ("convnext_atto", 320, 32, None),
        ("mixer_s32_224", 512, 32, (224, 224)),
        ("vit_small_patch14_dinov2", 384, 14, None),
        ("vit_small_patch16_dinov3", 384, 16, None),
    ],
)
def test_other_families_give_their_last_map(name, channels, stride, fixed):
    backbone = make_backbone(name)
    assert (backbone.channels, backbone.stride, backbone.fixed_size) == (channels, stride, fixed)
    height, width = fixed or (128, 200)
    with torch.inference_mode():
        found = backbone(picture(height, width))
    assert found.shape[1] == channels
    assert all(abs(a - b / stride) <= 1 for a, b in zip(found.shape[2:], (height, width), strict=True))


@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224", "efficientformer_l1"])
def test_attention_biases_are_those_of_the_file(name, tmp_path):
    """These networks keep, from the first pass in evaluation mode, what they have made of their biases."""
    torch.manual_seed(0)
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


def test_a_norm_behind_the_average_of_tokens_is_one_of_each_token():
    torch.manual_seed(0)
    options = {"depth": 1, "embed_dim": 64, "num_heads": 2}
    own = timm.create_model("beit_base_patch16_224", num_classes=0, **options).eval()
    for values in own.fc_norm.parameters():
        nn.init.normal_(values)
    backbone = make_backbone("beit_base_patch16_224", options=options)
    backbone.network.load_state_dict(
        {name.replace("fc_norm.", "norm."): value for name, value in own.state_dict().items()}
    )
    x = picture(224, 224)
    with torch.inference_mode():
        expected = own.fc_norm(own.forward_features(x)[:, 1:])
        torch.testing.assert_close(backbone(x).flatten(2).mT, expected)


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


def test_position_embeddings_of_another_resolution_keep_the_class_token():
    given = torch.randn(1, 1 + 49, 5)
    moved = resized(given, 1, 196)
    assert moved.shape == (1, 197, 5)
    torch.testing.assert_close(moved[:, 0], given[:, 0])
    expected = interpolate(given[:, 1:].mT.reshape(1, 5, 7, 7), size=(14, 14), mode="bicubic")
    torch.testing.assert_close(moved[:, 1:].mT.reshape(1, 5, 14, 14), expected)
    with pytest.raises(ValueError, match="square"):
        grid_embeddings(torch.randn(1, 1 + 50, 5), 1, (3, 3), (48, 48))


def test_drop_path_is_the_networks_own():
    network = make_backbone("vit_tiny_patch16_224", drop_path=0.1).network
    assert network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    of_torchvision = make_backbone("torchvision/convnext_tiny", drop_path=0.3).network
    assert of_torchvision.features[-1][-1].stochastic_depth.p == pytest.approx(0.3)
    with pytest.raises(InputError, match="drop path"):
        make_backbone("resnet18", drop_path=0.1)


def test_unknown_names_are_told_with_near_ones():
    with pytest.raises(InputError, match=r"resnet17: neither .*near: .*resnet18"):
        make_backbone("resnet17")
    with pytest.raises(InputError, match="before the / stands"):
        make_backbone("keras/resnet18")
    for name, near in (
        ("facebook/dinov2-small", "vit_small_patch14_dinov2"),
        ("vit_tiny", "vit_tiny_patch16_224"),
    ):
        with pytest.raises(InputError, match=rf"{name}: .*near: {near}, "):
            make_backbone(name)
