"""The shipped configuration files of converted encoders."""

import pytest
import yaml

from deflect_hf.config.run import EncoderArguments
from deflect_hf.errors import CheckpointError
from deflect_hf.models import load_encoder
from deflect_hf.models.geovit.sources import SOURCES
from tests.models.geovit.published import config_file


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_encoder_has_a_file_that_says_where_it_is(name):
    source, file = SOURCES[name], config_file(name)
    text = file.read_text()
    arguments = EncoderArguments(**yaml.safe_load(text))
    assert arguments.base_bands == list(source.base_bands)
    assert arguments.name_or_path == f"./encoders/{name.replace('-', '_')}"
    assert text.startswith("# python train.py --config")
    assert source.download in text and source.paper in text and f"--source {name} " in text
    assert {"cc-by-nc-4.0": "CC BY-NC 4.0", "mit": "MIT", "apache-2.0": "Apache-2.0"}[source.license] in text


def test_an_encoder_that_is_not_there_says_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_encoder("./encoders/satmae")
    assert str(caught.value).endswith(
        " SatMAE ViT-L/16 (fMoW RGB) is converted once, from "
        "https://zenodo.org/record/7369797/files/fmow_pretrain.pth: python -m deflect_hf.models.geovit.conversion "
        "--source satmae --checkpoint FILE --output ./encoders/satmae"
    )
