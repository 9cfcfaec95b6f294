"""From files as published to a folder of transformers."""

import argparse
import dataclasses
import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel

from deflect_hf.errors import CheckpointError, ConfigError
from deflect_hf.models.geovit import GeoViTBackbone, GeoViTModel
from deflect_hf.models.geovit.conversion import convert, find_checkpoint, main
from deflect_hf.models.geovit.sources import SOURCES
from tests.models.geovit.published import PUBLISHED, plane, reference_forward, volume, with_class_token

# Scale-MAE's authors compute their positions in every forward and leave the stored table unused.
WITH_A_USED_TABLE = [item for item in PUBLISHED.values() if item.kind != "learned" and item.source != "scale-mae"]


def name_of(published):
    return published.source


def refusal(published, tmp_path, tensors):
    """The message with which a changed checkpoint is refused; nothing is written."""
    file = published.save(tmp_path / "changed.pth", tensors)
    with pytest.raises(CheckpointError) as caught:
        convert(published.tiny_source(), file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert str(caught.value).startswith(str(file))
    return str(caught.value)


@pytest.fixture(scope="module", params=list(PUBLISHED))
def converted(request, tmp_path_factory):
    """A published checkpoint, what its conversion says, and the folder it wrote."""
    published, folder = PUBLISHED[request.param], tmp_path_factory.mktemp("converted")
    conversion = convert(published.tiny_source(), published.save(folder / "published.pth"), folder / "out")
    return published, conversion, folder / "out"


def test_converted_encoder_computes_what_the_authors_does(converted):
    published, conversion, folder = converted
    encoder = AutoModel.from_pretrained(folder).eval()
    assert type(encoder) is GeoViTModel and conversion.parameters == encoder.num_parameters()
    tensors = published.tensors()
    shape = (published.channels, *([published.frames] if published.frames else []), published.image, published.image)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    positions = tensors[published.prefix + published.positions]
    with torch.no_grad():
        expected = reference_forward(published, tensors, x, positions)
        torch.testing.assert_close(encoder(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    if published.kind == "learned":
        return
    rows, columns = 3, 5
    x = torch.randn(2, published.channels, rows * published.patch, columns * published.patch)
    table = volume(1, rows, columns, 32) if published.frames else plane(rows, columns, 32)
    series = x.unsqueeze(2) if published.frames else x
    with torch.no_grad():
        expected = reference_forward(published, tensors, series, with_class_token(table))
        torch.testing.assert_close(encoder(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_everything_left_out_is_listed_and_the_card_carries_the_license_of_the_weights(converted):
    published, conversion, folder = converted
    record = json.loads((folder / "conversion.json").read_text())
    unused = {published.prefix + published.positions} if published.kind != "learned" else set()
    assert set(record["left_out"]) == set(published.extra) | unused == set(conversion.left_out)
    assert record["file"] == "published.pth" and len(record["sha256"]) == 64
    card = (folder / "README.md").read_text()
    assert all(f"`{part}`: {count}" in card for part, count in conversion.left_out_by_part().items())
    licenses = {"scale": "cc-by-nc-4.0", "cross": "cc-by-nc-4.0", "satmae": "cc-by-nc-4.0", "dino": "mit"}
    license = licenses.get(published.source.split("-")[0], "apache-2.0")
    assert f"\nlicense: {license}\n" in card and SOURCES[published.source].note in card
    assert ("No commercial use" in card.replace("\n", " ")) == (license == "cc-by-nc-4.0")


def test_saved_again_it_is_the_same(converted, tmp_path):
    encoder = AutoModel.from_pretrained(converted[2])
    encoder.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in encoder.state_dict().items())
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == encoder.config.to_diff_dict()
    backbone = GeoViTBackbone.from_pretrained(tmp_path, out_indices=[1, 2])
    assert all(torch.equal(backbone.state_dict()[name], value) for name, value in encoder.state_dict().items())


def test_normalisation_is_written_in_reflectance_where_the_encoder_saw_reflectance(tmp_path):
    published = PUBLISHED["prithvi-eo-1"]
    convert(published.tiny_source(), published.save(tmp_path / "a.pt"), tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "normalisation.json").read_text())
    assert stored["bands"] == ["B", "G", "R", "N2", "S1", "S2"]
    assert stored["mean"] == pytest.approx([0.0775229, 0.1080993, 0.1228586, 0.2497202, 0.2204214, 0.1610832])
    assert stored["std"][0] == pytest.approx(0.1281526)
    published = PUBLISHED["satmae"]
    convert(published.tiny_source(), published.save(tmp_path / "b.pth"), tmp_path / "rgb")
    assert not (tmp_path / "rgb" / "normalisation.json").exists()


def test_flat_and_safe_files_are_read_as_well(tmp_path):
    published = PUBLISHED["scale-mae"]
    torch.save(published.tensors(), tmp_path / "flat.pth")
    save_file(published.tensors(), tmp_path / "flat.safetensors")
    states = []
    for name in ("flat.pth", "flat.safetensors"):
        convert(published.tiny_source(), tmp_path / name, tmp_path / name[5:])
        states.append(GeoViTModel.from_pretrained(tmp_path / name[5:]).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_half_precision_files_become_float32(tmp_path):
    published = PUBLISHED["satmae"]
    halves = {name: value.half() for name, value in published.tensors().items()}
    convert(published.tiny_source(), published.save(tmp_path / "half.pth", halves), tmp_path / "out")
    assert {p.dtype for p in AutoModel.from_pretrained(tmp_path / "out").parameters()} == {torch.float32}


def test_what_a_file_lacks_or_has_too_much_is_refused(published, tmp_path):
    tensors, prefix = published.tensors(), published.prefix
    lost, first, extra = (
        f"{prefix}{published.blocks}.1.mlp.fc2.bias",
        f"{prefix}patch_embed.proj.weight",
        f"{prefix}{published.blocks}.2.norm1.weight",
    )
    without = {name: value for name, value in tensors.items() if name != lost}
    assert f"lacks 1 tensors: '{lost}'" in refusal(published, tmp_path, without)
    cut = tensors | {first: tensors[first][..., :2]}
    message = refusal(published, tmp_path, cut)
    assert first in message and str(tuple(cut[first].shape)) in message
    deeper = refusal(published, tmp_path, tensors | {extra: torch.ones(32)})
    assert f"has 1 encoder tensors that {SOURCES[published.source].title} has not: '{extra}'" in deeper


@pytest.mark.parametrize("published", WITH_A_USED_TABLE, ids=name_of)
def test_other_fixed_positions_are_refused(published, tmp_path):
    tensors = published.tensors()
    name = published.prefix + published.positions
    halves = tensors[name].chunk(2, dim=-1)
    tensors[name] = torch.cat(halves[::-1], dim=-1)  # row before column
    assert f"{name} differs by" in refusal(published, tmp_path, tensors)


ONES = torch.ones(32)


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        ("dino-mc", {"backbone.blocks.0.ls1.gamma": ONES}, "'backbone.blocks.0.ls1.gamma'"),
        ("satmae", {"fcn_high.proj.weight": ONES}, "has 'fcn_high.proj.weight', which that of SatMAE"),
        ("scale-mae", {"decoder_pred.weight": ONES}, "has 'decoder_pred.weight', which that of Scale-MAE"),
        ("prithvi-eo-2-300m", {"encoder.temporal_embed_enc.scale": ONES}, "_embed_enc.scale', which that of Prithvi"),
        ("satmae", {"norm.weight": torch.nan * ONES}, "NaN or infinity in 'norm.weight'"),
        ("cross-scale-mae-base", {"encoder.encoders.0.wrap_att.norm.weight": ONES}, "whose norms by default stand"),
    ],
)
def test_another_encoder_of_the_same_shapes_is_refused(source, change, message, tmp_path):
    assert message in refusal(PUBLISHED[source], tmp_path, PUBLISHED[source].tensors() | change)


def test_a_prithvi_without_dates_and_places_is_not_taken_for_one_with_them(tmp_path):
    published = PUBLISHED["prithvi-eo-2-600m-tl"]
    tensors = {name: value for name, value in published.tensors().items() if "_embed_enc" not in name}
    assert "has no 'location_embed_enc.', 'temporal_embed_enc.'" in refusal(published, tmp_path, tensors)


def test_numbers_of_numpy_are_read_under_both_of_their_names(tmp_path):
    published = PUBLISHED["dino-mc"]
    file = published.save(tmp_path / "new.pth")
    with zipfile.ZipFile(file) as packed, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in packed.namelist():
            old.writestr(name, packed.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in zipfile.ZipFile(tmp_path / "old.pth").read("new/data.pkl")
    for name in ("new", "old"):
        convert(published.tiny_source(), tmp_path / f"{name}.pth", tmp_path / name)


def test_a_file_of_something_else_is_refused(tmp_path):
    published = PUBLISHED["scale-mae"]
    assert "has 0 tensors '...patch_embed.proj.weight'" in refusal(published, tmp_path, {"conv1.weight": torch.ones(2)})
    torch.save({"model": "none"}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match="no tensors under 'model' or at the top, only 'model'"):
        convert(published.tiny_source(), tmp_path / "empty.pth", tmp_path / "out")


class Payload:
    def __reduce__(self):
        return (print, ("code from a checkpoint was run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    published = PUBLISHED["scale-mae"]
    torch.save({"model": published.tensors(), "args": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match=r"objects of '(builtins|__builtin__)\.print'"):
        convert(published.tiny_source(), tmp_path / "evil.pth", tmp_path / "out")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Payload()}))
    with pytest.raises(CheckpointError, match=r"plain\.pth"):
        convert(published.tiny_source(), tmp_path / "plain.pth", tmp_path / "out")
    assert "code from a checkpoint was run" not in capsys.readouterr().out


def test_what_is_let_in_does_not_outlive_the_conversion(converted):
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_a_used_folder_is_kept(tmp_path):
    published = PUBLISHED["satmae"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="is there already"):
        convert(published.tiny_source(), published.save(tmp_path / "a.pth"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def run(*arguments):
    """Exit status of the command line."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


def test_command_line_converts(tmp_path, monkeypatch, capsys):
    published = PUBLISHED["prithvi-eo-2-600m-tl"]
    tiny = {**SOURCES, published.source: published.tiny_source()}
    monkeypatch.setattr("deflect_hf.models.geovit.sources.SOURCES", tiny)
    published.save(tmp_path / "Prithvi_EO_V2_600M_TL.pt")
    main(["--source", published.source, "--checkpoint", str(tmp_path), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"-> {tmp_path / 'out'}" in printed and "license of the weights: apache-2.0" in printed
    assert "left out: encoder.temporal_embed_enc" in printed
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "geovit"


def test_a_folder_with_several_files_asks_which(tmp_path, capsys):
    for name in ("a.pth", "b.pth"):
        PUBLISHED["dino-mc"].save(tmp_path / name)
    assert run("--source", "dino-mc", "--checkpoint", tmp_path, "--output", tmp_path / "out") == 2
    assert "holds 2 checkpoints: 'a.pth', 'b.pth'. Choose with --file." in capsys.readouterr().err


def test_a_hub_repository_is_read_from_the_cache(tmp_path, monkeypatch):
    published = PUBLISHED["satmae"]
    source = dataclasses.replace(published.tiny_source(), hub_id="someone/satmae")
    folder = tmp_path / "models--someone--satmae"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    published.save(folder / "snapshots" / ("0" * 40) / "fmow_pretrain.pth")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    convert(source, find_checkpoint(source), tmp_path / "out")
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == "geovit"
    with pytest.raises(CheckpointError, match=r"'fmow_pretrain\.pth' cannot be had from a Hub repository"):
        find_checkpoint(source, "someone/else")
