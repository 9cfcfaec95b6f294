"""train.py's road with every converted encoder and its shipped configuration file."""

from deflect_hf.config.compose import load_config
from deflect_hf.config.run import RunArguments
from deflect_hf.models.geovit.conversion import convert
from deflect_hf.training.run import run
from tests.models.geovit.published import config_file
from tests.tiny_runs import tiny_run

SMALL = ["--dataset.num_samples", "12", "--dataset.image_size", "[56,56]", "--batch_size", "2", "--epochs", "1"]


def test_one_epoch_with_each_encoder(published, checkpoint, tmp_path):
    encoder = tmp_path / "encoder"
    source = published.tiny_source()
    convert(source, checkpoint, encoder)
    words = [
        *("--encoder_config", str(config_file(source.name))),
        *("--encoder.name_or_path", str(encoder), "--work_dir", str(tmp_path / "run"), *SMALL),
    ]
    results, folder, _ = run(tiny_run("classification", *words))
    assert 0 <= results["test"]["accuracy"] <= 1
    used = load_config(RunArguments, folder / "config.yaml").encoder
    assert used.base_bands == list(source.base_bands)
    if source.mean is not None:
        assert (used.mean, used.std) == (list(source.mean), list(source.std))
