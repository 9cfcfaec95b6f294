"""How a benchmark's rows are written, and what is read from the folder of a run."""

import json
from pathlib import Path

import pytest
import yaml

from deflect_hf.benchmark.runs import Row, file_name, seen_bands, step_seconds
from deflect_hf.config.run import SegmentorArguments
from deflect_hf.errors import ConfigError
from deflect_hf.models import EncoderForImageClassification
from tests.tuners.tiny import BANDS, make_encoder


@pytest.mark.parametrize(
    ("text", "method", "options"),
    [
        ("frozen", "frozen", {}),
        ("lora:rank=8,target=qv", "lora", {"rank": 8, "target": "qv"}),
        ("slr:rank=16,patch_embed=rgb+random", "slr", {"rank": 16, "patch_embed": "rgb+random"}),
        ("peft:VeraConfig:r=64,target=qv", "peft:VeraConfig", {"r": 64, "target": "qv"}),
        ("peft:VeraConfig:d_initial=1e-1,target=qv", "peft:VeraConfig", {"d_initial": 0.1, "target": "qv"}),
        ("deflect:layers_to_transform=[4,5],indices=null", "deflect", {"layers_to_transform": [4, 5], "indices": None}),
    ],
)
def test_rows(text, method, options):
    row = Row.parse(text)
    assert (row.method, row.options) == (method, options)


def test_a_row_is_the_name_of_a_file():
    assert file_name("peft:VeraConfig:d_initial=1e-1,target=qv") == "peft_VeraConfig_d_initial_1e-1_target_qv"
    assert file_name("slr:patch_embed=rgb+random,layers=[4,5]") == "slr_patch_embed_rgb_random_layers_4_5"


@pytest.mark.parametrize("text", ["deflect", "norm", "bitfit:patch_embed=repeat", "full:patch_embed=rgb+random"])
def test_a_row_makes_a_model_for_timing(text, reflectance):
    encoder = make_encoder()
    model = Row.parse(text).adapt(EncoderForImageClassification.from_encoder(encoder, num_labels=2), BANDS)
    assert model(reflectance).logits.shape == (2, 2)
    assert encoder.config.num_channels == (6 if "patch_embed" in text else 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deflct", "finetune='deflct' is unknown.*'deflect'"),
        ("lora:rnk=8", "unknown key 'method.rnk'.*'rank'"),
        ("lora:rank=[8", r"--rows: cannot read '\[8'"),
        ("lora:rank", "'rank' has no value; write rank=VALUE"),
        ("peft", "PEFT has no configuration ''"),
        ("peft:VeraConfig", "needs either method.target"),
        ("peft:PrefixTuningConfig:target=qv", "cannot adapt a vision transformer"),
    ],
)
def test_bad_rows(text, message):
    with pytest.raises(ConfigError, match=message):
        Row.parse(text)


def test_the_head_of_a_row_takes_the_place_of_the_benchmarks() -> None:
    row = Row.parse("lora:rank=2,head=pixel,channels=24,zoom=2")
    assert (row.options, row.segmentor) == ({"rank": 2}, {"head": "pixel", "channels": 24, "zoom": 2})
    assert Row.parse("lora:rank=2").segmentor == {}
    with pytest.raises(ConfigError, match=r"'head' must be one of 'linear'.*Did you mean 'pixel'"):
        SegmentorArguments().replace(**Row.parse("deflect:head=pxl").segmentor)
    with pytest.raises(ConfigError, match="head"):
        Row.parse("unet:head=pixel")


def test_the_time_of_a_step_leaves_validations_out(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"step": 10 * k, "lr": 1, "seconds": 2.0 * k + 100 * (k > 2)} for k in range(1, 6)]
    lines.insert(2, {"step": 20, "val": {}, "seconds": 104.0})
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert step_seconds(log) == pytest.approx(0.2)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    assert step_seconds(log) is None


@pytest.mark.parametrize(
    ("row", "base", "expected"),
    [
        ("deflect", "RGB", "all 4"),
        ("lora", "RGB", "RGB"),
        ("lora:patch_embed=repeat", "RGB", "all 4"),
        ("frozen", "BN", "2 of 4"),
        ("full", "BGRN", "all 4"),
    ],
)
def test_bands_that_a_method_looks_at(row: str, base: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"encoder": {"base_bands": list(base)}}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"bands": list("BGRN")}))
    assert seen_bands(tmp_path, Row.parse(row)) == expected
