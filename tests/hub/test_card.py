"""The model card: complete, true to the run, valid for the Hub, and the same again when it is read."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard

from deflect_hf.hub.__main__ import main as program
from deflect_hf.hub.card import known_license, write_card
from deflect_hf.hub.picture import draw_prediction
from deflect_hf.hub.push import push
from deflect_hf.tuners.base import complete_card
from tests.hub.conftest import train
from tests.hub.server import Hub
from tests.hub.store import metadata_problems

Runs = Callable[[str], Path]


@pytest.fixture
def best(runs: Runs, tmp_path: Path) -> Path:
    shutil.copytree(runs("deflect") / "encoder", tmp_path / "encoder")
    drawn = shutil.ignore_patterns("prediction.png")  # by a test that published the shared run
    return shutil.copytree(runs("deflect") / "best", tmp_path / "best", ignore=drawn)


def card_of(folder: Path, **options: Any) -> tuple[ModelCard, str]:
    text = write_card(folder, **options).read_text()
    assert metadata_problems(text) == []
    return ModelCard(text), text


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    read, write = (json.loads, json.dumps) if path.suffix == ".json" else (yaml.safe_load, yaml.safe_dump)
    content = read(path.read_text())
    change(content)
    path.write_text(write(content))


def test_a_card_that_somebody_else_wrote_stays(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(["card", str(best)])
    program(["card", str(best)])  # its own
    for name in ("README.md", "prediction.png"):
        kept = (best / name).read_bytes()
        (best / name).write_text("mine")
        with pytest.raises(SystemExit, match="2"):
            program(["card", str(best)])
        assert (best / name).read_text() == "mine" and f"{name}': not written by" in capsys.readouterr().err
        (best / name).write_bytes(kept)


def test_every_number_of_the_run_is_on_it(best: Path) -> None:
    card, text = card_of(best, repo_id="alice/land")
    results = json.loads((best / "results.json").read_text())
    test, counts = results["test"], results["parameters"]
    low, high = test["intervals"]["miou"]
    assert f"| mIoU | {test['miou']:.3f} [{low:.3f}, {high:.3f}] |" in text
    assert f"| {counts['encoder_trainable']:,} ({counts['encoder_trainable_percent']:.3g} %) |" in text
    assert f"Images: {results['images']['train']:,} train, " in text
    for name in ("water", "vegetation", "bare", "wetland"):
        assert f"| {name} | {test['per_class'][name]['iou']:.3f}" in text
    adapter = json.loads((best / "adapter_config.json").read_text())
    for name, formula in adapter["formulas"].items():
        assert f"| {name} | `{formula}` |" in text
    assert "| `S2` | Short-wave infrared 2 | 2080 to 2350 | radiometry | yes |" in text
    assert "| `R` | Red | 620 to 690 | encoder and radiometry | yes |" in text
    size = (best / "adapter_model.safetensors").stat().st_size
    assert f"| `adapter_model.safetensors` | {size / 1000:,.0f} kB |" in text
    assert "reflectance, 1.0 = 100 %" in text and "`value * 0.0001 + 0.0`" in text
    assert "@inproceedings{thoreau2025deflect," in text and "## Limits" in text
    assert not re.search(r"More Information|None|nan\b", text)
    assert (card.data.library_name, card.data.pipeline_tag) == ("peft", "image-segmentation")


def test_its_metadata_survives_being_read_and_written(best: Path, tmp_path: Path) -> None:
    card, _ = card_of(best, repo_id="alice/land")
    results = json.loads((best / "results.json").read_text())["test"]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {"accuracy": "accuracy", "mean_iou": "miou", "f1": "f1_macro"}
    assert found == {kind: round(results[name], 4) for kind, name in expected.items()}
    assert all(isinstance(result, EvalResult) and result.dataset_split == "test" for result in card.data.eval_results)
    card.save(tmp_path / "again.md")
    again = ModelCard.load(tmp_path / "again.md")
    assert again.data.to_dict() == card.data.to_dict() and again.text == card.text


def test_writing_it_twice_changes_nothing_and_pefts_headings_are_gone(runs: Runs, best: Path) -> None:
    first = write_card(best).read_text()
    assert write_card(best).read_text() == first
    assert "[More Information Needed]" not in first and "base_model" not in yaml.safe_load(first.split("---")[1])


@pytest.mark.parametrize(("method", "library"), [("lora", "peft"), ("frozen", "deflect_hf"), ("full", "transformers")])
def test_cards_of_the_other_methods(method: str, library: str, runs: Runs, tmp_path: Path) -> None:
    card, text = card_of(shutil.copytree(runs(method) / "best", tmp_path / "best"), repo_id="alice/land")
    assert card.data.library_name == library and card.data.tags == sorted({method, "deflect_hf", *card.data.tags})
    assert "## Spectral indices" not in text and "## Citation" not in text
    assert "| `N` | Near infrared | 760 to 900 | not used | may be missing (NaN) |" in text


def test_classification_has_a_card_too(tmp_path: Path, hub: Hub) -> None:
    folder = train(tmp_path / "run", task="classification")
    push(folder, "alice/classes")
    files = hub.files("alice/classes")
    text = files["README.md"].decode()
    assert "Tells which of 4 classes a multispectral image shows (`water`, `vegetation`, `bare`, `wetland`)" in text
    assert "pipeline_tag: image-classification" in text and files["prediction.png"].startswith(b"\x89PNG")


def test_the_base_model_is_named_with_its_commit_and_licence(best: Path) -> None:
    edit(best / "config.yaml", lambda config: config["encoder"].update(random=None, name_or_path="bob/vit"))
    edit(best / "config.yaml", lambda config: config["encoder"].update(revision="0123abc"))
    card, text = card_of(best, repo_id="alice/land", license="cc-by-nc-4.0")
    assert (card.data.base_model, card.data.license) == ("bob/vit", "cc-by-nc-4.0")
    assert "[bob/vit](https://huggingface.co/bob/vit) at commit `0123abc`." in text
    assert "Its license, cc-by-nc-4.0, allows **no commercial use**; that holds for this model, too" in text
    card, text = card_of(best, repo_id="alice/land")
    assert card.data.license is None and "For its license, which holds for this model, too, see the base model." in text


def test_licences_that_are_known() -> None:
    assert known_license("isaaccorley/vit_large_patch16_224_fmow_rgb_scalemae") == "cc-by-nc-4.0"
    assert known_license("ibm-nasa-geospatial/Prithvi-EO-2.0-300M") == "apache-2.0"
    assert known_license("bob/vit") is None and known_license(None) is None


def test_the_licence_in_an_encoders_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# An encoder\n")
    assert known_license(str(tmp_path)) == "mit"
    for text in ("# No card\n", "---\nlicense: [\n---\n", "---\n- a list\n---\n", "---\nlicense: {a: b}\n---\n"):
        (tmp_path / "README.md").write_text(text)
        assert known_license(str(tmp_path)) is None
    assert not caplog.text  # a text that is no card is nothing to warn of


def test_data_that_is_gone_leaves_a_card_without_a_picture(best: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = {"name": "folder", "task": "segmentation", "root": str(best / "gone"), "classes": ["a", "b", "c", "d"]}
    edit(best / "config.yaml", lambda config: config.update(dataset=data))
    assert draw_prediction(best) is None and "no picture of a prediction: " in caplog.text
    assert "prediction.png" not in write_card(best).read_text()


def test_classes_without_names_are_those_of_transformers(best: Path) -> None:
    edit(best / "config.json", lambda content: content.pop("id2label"))  # as it is saved for two of them
    assert "(`LABEL_0`, `LABEL_1`)" in card_of(best)[1]


def test_names_of_classes_are_text_and_no_markup(best: Path) -> None:
    name = "a|b *c* <i>\n`d`"
    edit(best / "config.json", lambda content: content["id2label"].update({"0": name}))
    edit(best / "results.json", lambda c: c["test"]["per_class"].update({name: c["test"]["per_class"].popitem()[1]}))
    text = card_of(best)[1]
    assert "`a|b *c* <i> 'd'`" in text and r"| a\|b \*c\* \<i> \`d\` | " in text


def test_pixels_and_grid_of_the_training_images_are_told_where_they_are_known(best: Path) -> None:
    place = best / "preprocessor_config.json"
    for gsd_m, grid, said in [
        (30.0, "Transverse_Mercator", "+ 0.0`, at 30 m per pixel, on a `Transverse_Mercator` grid. NaN marks"),
        (None, "geographic", "+ 0.0`, on a `geographic` grid. NaN marks"),
        (10.0, None, "+ 0.0`, at 10 m per pixel. NaN marks"),
        (None, None, "+ 0.0`. NaN marks"),
    ]:
        edit(place, lambda entries, new={"gsd_m": gsd_m, "projection": grid}: entries.update(new))
        assert said in card_of(best)[1]


def test_images_that_are_resized_come_out_in_the_new_size(best: Path) -> None:
    assert "np.full((1, 7, 16, 16), " in card_of(best)[1]
    sizes = {"size": {"height": 32, "width": 48}, "trained_size": [64, 96]}
    edit(best / "preprocessor_config.json", lambda entries: entries.update(sizes))
    text = card_of(best)[1]
    assert "np.full((1, 7, 64, 96), " in text and "# (1, 4, 32, 48)" in text


def test_a_checkpoint_without_scores_says_so(best: Path) -> None:
    (best / "results.json").write_text(json.dumps({"finetune": "deflect", "epochs": 1, "steps": 3, "seconds": 1.5}))
    card, text = card_of(best, repo_id="alice/land", revision="step-3")
    assert "This checkpoint was not evaluated." in text and card.data.eval_results is None
    assert "3 steps of 4 images, 500 ms each" in text
    assert "load_predictor('alice/land', revision='step-3')" in text


def test_images_of_a_step_are_those_of_all_processes_and_batches(best: Path) -> None:
    edit(best / "config.yaml", lambda config: config.update(batch_size=4, accumulate=2))
    told = {"processes": 3, "device": "cpu: one"}
    edit(best / "results.json", lambda results: results.update(steps=5, seconds=1.0, environment=told))
    assert "5 steps of 24 images, 200 ms each with reading and validation, on cpu: one, 3 processes" in card_of(best)[1]


@pytest.mark.parametrize(("name", "named"), [("bob/vit", True), ("FOLDER", False), ("", False)])
def test_pefts_card_names_no_folder_of_this_machine(name: str, named: bool, tmp_path: Path) -> None:
    path = str(tmp_path) if name == "FOLDER" else name
    text = f"---\nbase_model: '{path}'\nlibrary_name: peft\ntags:\n- 'base_model:adapter:{path}'\n---\n\n# A card\n"
    (tmp_path / "README.md").write_text(text)
    complete_card(tmp_path, "DEFLECT")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == ("bob/vit" if named else None)
    assert card.data.tags == (["base_model:adapter:bob/vit", "deflect"] if named else ["deflect"])
    assert "import deflect_hf  # before the adapter is loaded" in card.text and str(tmp_path) not in str(card)
