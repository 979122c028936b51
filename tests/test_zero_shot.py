"""Zero-shot segmentation: dense features, text, thresholds, against slow references."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import reference
import torch
from helpers.weights import prefixed
from PIL import Image
from prepared_set import VALIDATION, WNIDS, write_lists, write_set
from torch.nn.functional import interpolate, normalize

open_clip = pytest.importorskip("open_clip")

from open_clip.transformer import VisionTransformer

from imagenets.classes import ClassInfo, class_table
from imagenets.common.errors import InputError
from imagenets.learning.engine.full_size import label_map, label_map_and_confidence
from imagenets.learning.engine.inference import Batch
from imagenets.learning.zero_shot import labels, text_embeddings, vision_language
from imagenets.learning.zero_shot.dense_features import LAST_BLOCKS, clip_embeddings
from imagenets.learning.zero_shot.vision_language import SIGLIP_DENSE, VisionLanguage, load_vision_language
from imagenets.masks import decode_mask
from imagenets.scoring.contingency import count_pairs
from imagenets.scoring.metrics import evaluate
from imagenets.scoring.pairs import find_pairs
from methods import zero_shot


@torch.no_grad()
def noisy(network, much):
    """Add noise to all weights, so that norms and biases do something."""
    for weight in network.parameters():
        weight.add_(torch.randn_like(weight) * much)
    return network


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    visual = VisionTransformer(64, 16, width=64, layers=3, heads=4, mlp_ratio=2.0, output_dim=24).eval()
    return noisy(visual, 0.15)


def slow_embeddings(visual, picture, method):
    """One picture (3, H, W), token by token, head by head: (h, w, E) unit vectors."""
    patch, width = visual.patch_size[0], visual.conv1.out_channels
    h, w = picture.shape[1] // patch, picture.shape[2] // patch
    side = math.isqrt(len(visual.positional_embedding) - 1)
    positions = visual.positional_embedding[1:].T.reshape(1, width, side, side)
    if (h, w) != (side, side) or picture.shape[1] != picture.shape[2]:
        factors = ((h + 0.1) / side, (w + 0.1) / side)
        positions = interpolate(positions, scale_factor=factors, mode="bicubic")
    tokens = [visual.class_embedding + visual.positional_embedding[0]]
    for i in range(h):
        for j in range(w):
            cut = picture[:, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens.append((visual.conv1.weight * cut).sum((1, 2, 3)) + positions[0, :, i, j])
    x = visual.ln_pre(torch.stack(tokens))[None]
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    block, x = visual.transformer.resblocks[-1], x[0]
    heads, d = block.attn.num_heads, width // block.attn.num_heads
    y = block.ln_1(x)
    weights, biases = block.attn.in_proj_weight, block.attn.in_proj_bias
    q, k, v = (
        y @ weights[n * width : (n + 1) * width].T + biases[n * width : (n + 1) * width] for n in range(3)
    )
    mixed = torch.zeros_like(v)
    for head in range(heads):
        s = slice(head * d, (head + 1) * d)
        qh, kh, vh = q[:, s], k[:, s], v[:, s]
        near = torch.zeros(len(x), len(x))
        for a in range(h * w) if method == "naclip" else ():
            for b in range(h * w):
                distance = (a // w - b // w) ** 2 + (a % w - b % w) ** 2
                near[1 + a, 1 + b] = math.exp(-distance / (2 * 5.0**2))
        attention = {
            "clip": (qh @ kh.T / d**0.5).softmax(1),
            "maskclip": torch.eye(len(x)),
            "sclip": (qh @ qh.T / d**0.5).softmax(1) + (kh @ kh.T / d**0.5).softmax(1),
            "clearclip": (qh @ qh.T / d**0.5).softmax(1),
            "naclip": (kh @ kh.T / d**0.5 + near).softmax(1),
        }[method]
        mixed[:, s] = attention @ vh
    out = block.attn.out_proj(mixed)
    if method in ("clip", "sclip"):
        x = x + out
        out = x + block.mlp(block.ln_2(x))
    z = visual.ln_post(out)[1:] @ visual.proj
    return (z / z.norm(dim=1, keepdim=True)).view(h, w, -1)


@pytest.mark.parametrize("size", [(64, 64), (72, 100)])
@pytest.mark.parametrize("method", LAST_BLOCKS)
@torch.no_grad()
def test_dense_features_equal_the_definition(tower, method, size):
    torch.manual_seed(1)
    pictures = torch.randn(2, 3, *size)
    found = clip_embeddings(tower, pictures, LAST_BLOCKS[method])
    wanted = torch.stack([slow_embeddings(tower, picture, method) for picture in pictures])
    assert found.shape == (2, 24, size[0] // 16, size[1] // 16)
    assert torch.allclose(found.permute(0, 2, 3, 1), wanted, atol=2e-5)


@torch.no_grad()
def test_plain_clip_at_its_own_size_is_what_open_clip_computes(tower):
    pictures = torch.randn(2, 3, 64, 64)
    output = tower.forward_intermediates(
        pictures, indices=[-1], normalize_intermediates=True, output_fmt="NLC", intermediates_only=True
    )
    wanted = output["image_intermediates"][0] @ tower.proj
    found = clip_embeddings(tower, pictures, LAST_BLOCKS["clip"]).flatten(2).transpose(1, 2)
    assert torch.allclose(found, normalize(wanted, dim=-1), atol=1e-5)


def test_scales_of_the_softmax_are_the_published_ones():
    scales = {method: row.scale for method, row in LAST_BLOCKS.items()}
    assert scales == {"clip": 100, "maskclip": 100, "sclip": 40, "clearclip": 50, "naclip": 40}


@pytest.fixture(scope="module")
def siglip():
    import timm

    torch.manual_seed(0)
    trunk = timm.create_model(
        "vit_base_patch16_siglip_224", num_classes=0, img_size=64, embed_dim=48, depth=2, num_heads=4
    ).eval()
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    model.visual.trunk = noisy(trunk, 0.1)
    model.logit_scale, model.logit_bias = torch.tensor(2.0), torch.tensor(-3.0)
    return VisionLanguage("tiny", model, None, (0.5,) * 3, (0.5,) * 3, 16, "", ())


@torch.no_grad()
def test_siglip_pools_each_patch_as_if_it_were_the_only_one(siglip):
    """And turns cosines into probabilities by its own scale and offset, and a sigmoid."""
    torch.manual_seed(0)
    pictures, text = torch.randn(2, 3, 64, 64), normalize(torch.randn(3, 48), dim=1)
    trunk = siglip.model.visual.trunk
    tokens = trunk.forward_features(pictures)
    found = siglip.patch_embeddings(pictures, SIGLIP_DENSE)
    for place in range(16):
        wanted = normalize(trunk.attn_pool(tokens[:, place : place + 1]), dim=-1)
        assert torch.allclose(found[:, :, place // 4, place % 4], wanted, atol=1e-5)
    batch = Batch([0], pictures[:1], [(64, 64)], [(64, 64)], [])
    ((label, confidence),) = labels.Namer(siglip, text, SIGLIP_DENSE).labels_and_confidence(batch)
    logits = math.exp(2) * torch.einsum("ehw,ne->nhw", found[0], text) - 3
    best, place = interpolate(logits[None], (64, 64), mode="bilinear")[0].max(0)
    assert torch.equal(label.long(), place + 1)
    assert torch.allclose(confidence, best.sigmoid(), atol=1e-5)


def test_confidence_is_the_softmax_of_the_enlarged_logits_a_few_maps_at_a_time():
    torch.manual_seed(0)
    logits = torch.randn(11, 5, 7) * 3
    whole = interpolate(logits[None], (40, 31), mode="bilinear")[0]
    for at_once in (1, 40 * 31 * 3, 1 << 26):
        found, confidence = label_map_and_confidence(logits, (40, 31), at_once)
        assert torch.equal(found, label_map(logits, (40, 31)))
        assert torch.equal(found.long(), whole.argmax(0))
        assert torch.allclose(confidence, whole.softmax(0).amax(0), atol=1e-6)
        _, confidence = label_map_and_confidence(logits, (40, 31), at_once, sigmoid=True)
        assert torch.allclose(confidence, whole.amax(0).sigmoid(), atol=1e-6)


class FixedModel:
    """Stands for a model: its patch embeddings are the first channels of the picture."""

    def patch_embeddings(self, pictures, dense):
        return normalize(pictures[:, :, ::8, ::8], dim=1)

    def probability_scale(self, dense):
        return LAST_BLOCKS[dense].scale, 0.0


def namer_and_batch(classes=5, size=(50, 43)):
    torch.manual_seed(3)
    text = normalize(torch.randn(classes, 3), dim=1)
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 0, 1, 2, 3, 5, 1000], size).astype(np.uint16) for _ in range(2)]
    batch = Batch([0, 1], torch.randn(2, 3, 40, 32), [size, size], [size, size], masks)
    return labels.Namer(FixedModel(), text, "naclip"), batch


def test_labels_are_the_most_probable_name_or_background_below_the_threshold():
    namer, batch = namer_and_batch()
    found = labels.label_step(namer, 0.6)(batch)
    patches = namer.model.patch_embeddings(batch.pictures, "naclip")
    for of_one, size, label_map_of_one in zip(patches, batch.sizes, found, strict=True):
        cosines = torch.stack([(of_one * name[:, None, None]).sum(0) for name in namer.text])
        logits = interpolate(40 * cosines[None], size, mode="bilinear")[0]
        probability, best = logits.softmax(0).max(0)
        wanted = torch.where(probability < 0.6, 0, best + 1)
        assert torch.equal(label_map_of_one.long(), wanted)
        assert 0 < (wanted == 0).float().mean() < 1  # the threshold decides something here


def test_all_thresholds_are_scored_as_label_maps_of_each_would_be():
    namer, batch = namer_and_batch()
    pairs = list(zip(batch.masks, namer.labels_and_confidence(batch), strict=True))
    rows = [labels.count_labels(mask, *one) for mask, one in pairs]
    truth, predicted = (
        np.concatenate([row[part].numpy() for row in rows]) for part in ("truth", "predicted")
    )
    found = labels.sweep(truth, predicted, classes=5)
    for threshold, miou in list(zip(found.thresholds, found.miou, strict=True))[::9]:
        label_maps = [
            (mask, np.where(confidence.numpy() < np.float32(threshold), 0, best.numpy()))
            for mask, (best, confidence) in pairs
        ]
        areas = reference.class_areas(label_maps, None, 5)
        ious = [reference.iou(both, mine, theirs) for mine, theirs, both in areas.T]
        assert miou == pytest.approx(reference.mean(ious), abs=1e-9)
    assert found.best == found.thresholds[int(np.argmax(found.miou))]
    assert len(set(np.round(found.miou, 6))) > 20


def test_names_in_the_order_of_ids_from_each_source(tmp_path):
    table = class_table(3, ["n01443537", "n02012849", "n03126707"])  # goldfish, crane (bird), crane (machine)
    assert text_embeddings.class_names("openai", table) == ["goldfish", "crane bird", "construction crane"]
    own = text_embeddings.class_names("toolbox", table)
    assert own[0] == "goldfish" and len(set(own)) == 3
    file = tmp_path / "names.txt"
    file.write_text("a\nb b\nc\n")
    assert text_embeddings.class_names(file, table) == ["a", "b b", "c"]
    file.write_text("a\nb\n")
    with pytest.raises(InputError, match="2 names for 3 classes"):
        text_embeddings.class_names(file, table)
    foreign = [table[0], ClassInfo(1, "n00000001", "mine", None)]
    with pytest.raises(InputError, match=r"mine.*ImageNet-1k"):
        text_embeddings.class_names("openai", foreign)


def test_text_embeddings_are_kept_by_names_templates_and_weights(tmp_path):
    keys = (["a", "b"], 80, "weights"), (["b", "a"], 80, "weights"), (["a", "b"], 85, "weights")
    path, *others = (
        text_embeddings.embeddings_file(tmp_path, *key) for key in (*keys, (["a", "b"], 80, "others"))
    )
    assert len({path, *others}) == 4
    vectors = torch.randn(2, 8)
    text_embeddings.save_embeddings(path, vectors)
    assert torch.equal(text_embeddings.load_embeddings(path), vectors)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="damaged"):
        text_embeddings.load_embeddings(path)


TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with small models of open_clip's, weights of the first, and it."""
    folder = tmp_path_factory.mktemp("models")
    resnet = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    for name, own in (
        ("tiny-clip", {}),
        ("tiny-clip-quickgelu", {"quick_gelu": True}),
        ("tiny-resnet", {"vision_cfg": resnet}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(TINY | own))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip", load_weights=False)
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder, model


@pytest.mark.parametrize("templates", [1, 80, 85])
@torch.no_grad()
def test_a_name_is_the_mean_of_its_sentences_unit_vectors(tiny, templates):
    model, tokenizer = tiny[1].eval(), open_clip.get_tokenizer("ViT-B-32")
    names = ["goldfish", "great white shark"]
    found = text_embeddings.embed_names(model, tokenizer, names, templates, torch.device("cpu"))
    for name, vector in zip(names, found, strict=True):
        sentences = text_embeddings.prompts(name, templates)
        assert len(sentences) == templates and all(name in sentence for sentence in sentences)
        units = [normalize(model.encode_text(tokenizer([sentence])), dim=1)[0] for sentence in sentences]
        assert torch.allclose(vector, normalize(sum(units), dim=0), atol=1e-6)


def test_85_templates_are_openais_and_five_of_scenes():
    scenes = ["there is a cat", "there is the cat", "this is a cat", "this is the cat", "this is one cat"]
    assert text_embeddings.prompts("cat", 85)[80:] == [f"{scene} in the scene." for scene in scenes]
    assert text_embeddings.prompts("cat", 1) == ["a photo of a cat."]


def test_names_that_are_one_text_are_found():
    names = ["Cardigan", "crane", "cardigan", "Crane", "goldfish"]
    found = text_embeddings.tied_names(names, open_clip.get_tokenizer("ViT-B-32"))
    assert found == [["Cardigan", "cardigan"], ["crane", "Crane"]]


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@torch.no_grad()
def test_a_file_of_open_clip_loads_every_tensor(tiny, tmp_path, wrapper):
    _, model = tiny
    weights = prefixed(model.state_dict(), "module." if wrapper == "state_dict" else "")
    torch.save({wrapper: weights} if wrapper else weights, tmp_path / "w.pt")
    loaded = load_vision_language("tiny-clip", tmp_path / "w.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name
    assert (loaded.patch, loaded.mean) == (16, vision_language.CLIP_MEAN)
    assert any("activation GELU" in line for line in loaded.lines)
    texts = loaded.tokenizer(["a photo of a cat."])
    assert torch.equal(loaded.model.encode_text(texts), model.eval().encode_text(texts))


@pytest.mark.filterwarnings("ignore")
def test_openais_torchscript_archives_load_with_quickgelu_only(tiny, tmp_path):
    """They hold float16."""
    _, model = tiny
    path = tmp_path / "ViT.pt"
    inputs = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77).long()
    torch.jit.trace(model.eval(), inputs, check_trace=False).save(path)
    torch.jit.load(path).half().save(path)
    with pytest.raises(InputError, match=r"want QuickGELU; take tiny-clip-quickgelu"):
        load_vision_language("tiny-clip", path)
    loaded = load_vision_language("tiny-clip-quickgelu", path)
    assert loaded.model.visual.proj.dtype == torch.float32
    assert torch.allclose(loaded.model.visual.proj, model.visual.proj, atol=1e-3)
    assert any("QuickGELU" in line for line in loaded.lines)


def test_weights_and_names_that_do_not_go_together_are_refused(tiny, tmp_path):
    weights = dict(tiny[1].state_dict())
    other_grid = weights | {"visual.positional_embedding": torch.zeros(17, 64)}
    lacking = {name: value for name, value in weights.items() if name != "text_projection"}
    resnet = open_clip.create_model("tiny-resnet", load_weights=False).state_dict()
    for name, file, content, message in (
        ("tiny-klip", "w.pt", weights, r"open_clip.*near: tiny-clip"),
        (None, "w.pt", weights, "name open_clip's model"),
        ("tiny-clip", "vit_openai.pt", weights, "want QuickGELU"),
        ("tiny-clip", "w.pt", weights | {"context_length": torch.tensor(77)}, "want QuickGELU"),
        ("tiny-clip-quickgelu", "laion2b.pt", weights, r"want GELU; take tiny-clip$"),
        ("tiny-clip", "w.pt", other_grid,
            r"another shape \(visual.positional_embedding is \(17, 64\), not \(5, 64\)"),
        ("tiny-clip", "w.pt", lacking, r"1 are missing.*text_projection"),
        ("tiny-clip", "w.pt", {"vision_model.embeddings.class_embedding": torch.zeros(3)},
            "transformers' names"),
        ("ViT-B-16-SigLIP", "w.pt", weights, r"open_clip_config\.json"),
        ("tiny-resnet", "w.pt", resnet, "no dense features are defined"),
    ):  # fmt: skip
        torch.save(content, tmp_path / file)
        with pytest.raises(InputError, match=message):
            load_vision_language(name, tmp_path / file)


def test_a_folder_says_model_and_preprocessing(tiny, tmp_path):
    _, model = tiny
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"open_clip_model\.safetensors"):
        load_vision_language(None, tmp_path)
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    loaded = load_vision_language(None, tmp_path)
    assert (loaded.mean, loaded.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert torch.equal(loaded.model.visual.proj, model.visual.proj)
    with pytest.raises(InputError, match=r"has no open_clip_config\.json"):
        load_vision_language(None, tmp_path.parent)


@pytest.fixture(scope="module")
def run_on_a_set(tiny, tmp_path_factory):
    """A function that runs zero_shot.py in this process on a prepared set of four validation images."""
    folder, _ = tiny
    root = tmp_path_factory.mktemp("zero_shot")
    write_set(root / "save")
    write_lists(root / "lists")

    def run(output, *more):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("IMAGENETS_LISTS", str(root / "lists"))
            patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
            arguments = ["--save-dir", root / "save", "--mode", 50, "--splits", "validation", "--workers", 0]
            arguments += ["--model", "tiny-clip", "--checkpoint", folder / "weights.pt", "--size", 45]
            arguments += ["--output-dir", output, "--templates", 1, "--device", "cpu", *more]
            patch.setattr(sys, "argv", ["zero_shot.py", *map(str, arguments)])
            zero_shot.main()

    return root, run


def test_label_maps_are_those_of_the_definition_and_score_what_the_sweep_says(
    run_on_a_set, tiny, tmp_path, capsys
):
    root, run = run_on_a_set
    _, model = tiny
    run(tmp_path / "out")
    assert "whose masks were used to choose it" in capsys.readouterr().out
    chosen = json.loads((tmp_path / "out/threshold.json").read_text())
    truth = root / "save/ImageNetS50/validation-segmentation"
    found = find_pairs(truth, tmp_path / "out/validation")
    table, _ = count_pairs(found, workers=0)
    assert max(chosen["mIoU"]) == pytest.approx(evaluate(table, classes=50).scores["mIoU"], abs=1e-9)
    names = text_embeddings.class_names("openai", class_table(50, WNIDS))
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    with torch.no_grad():
        text = torch.stack([model.encode_text(tokenizer([f"a photo of a {name}."]))[0] for name in names])
        text /= text.norm(dim=1, keepdim=True)
        for _, wnid, stem in VALIDATION:
            image = Image.open(root / f"save/ImageNetS50/validation/{wnid}/{stem}.JPEG").convert("RGB")
            width, height = image.size
            # 45 pixels high and in proportion wide, each to the nearest multiple of 16.
            small = image.resize((16 * round(int(45 * width / height) / 16), 48), Image.Resampling.BILINEAR)
            values = torch.from_numpy(np.array(small)).permute(2, 0, 1) / 255
            mean, std = (
                torch.tensor(of)[:, None, None]
                for of in (vision_language.CLIP_MEAN, vision_language.CLIP_STD)
            )
            patches = slow_embeddings(model.visual, (values - mean) / std, "naclip")
            logits = 40 * torch.einsum("hwe,ne->nhw", patches, text)[None]
            probability, best = interpolate(logits, (height, width), mode="bilinear")[0].softmax(0).max(0)
            wanted = torch.where(probability < chosen["best"], 0, best + 1)
            found = decode_mask(tmp_path / f"out/validation/{wnid}/{stem}.png")
            assert (found == wanted.numpy()).mean() > 0.99  # but for ties by rounding


def test_a_second_run_makes_nothing_new_and_other_settings_are_refused(
    run_on_a_set, tmp_path, capsys, monkeypatch
):
    _, run = run_on_a_set
    run(tmp_path / "out", "--threshold", 0.1)
    capsys.readouterr()
    run(tmp_path / "out", "--threshold", 0.1)
    assert "4 predictions, 0 made now" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"\(dense: naclip then, clearclip now\)"):
        run(tmp_path / "out", "--threshold", 0.1, "--dense", "clearclip")
    with pytest.raises(InputError, match="for which --dense siglip is not defined"):
        run(tmp_path / "other", "--dense", "siglip")
    monkeypatch.setattr(zero_shot, "embed_names", None)  # kept from before: not computed again
    run(tmp_path / "third", "--threshold", 0.2, "--dense", "sclip")


def test_a_pixel_at_the_threshold_is_of_its_class():
    levels = torch.tensor(labels.THRESHOLDS)
    counted = labels.count_labels(
        np.ones((1, len(levels)), np.uint16), torch.ones(1, len(levels)).int(), levels[None]
    )
    steps = counted["predicted"][:, 1].tolist()
    assert steps == list(range(1, len(levels) + 1))  # each reaches its own threshold and those below
