"""Configuration: precedence, and errors that name the file, the key and the fix."""

from pathlib import Path

import pytest

from deflect_hf.config.compose import build_parser, load_config, parse_arguments, to_yaml
from deflect_hf.config.inference import PredictArguments
from deflect_hf.config.run import EvaluateArguments, RunArguments
from deflect_hf.config.schema import keys_of
from deflect_hf.errors import ConfigError
from deflect_hf.hub.__main__ import PushArguments
from deflect_hf.reference import PAGE, page

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EMBEDDED = str(CONFIGS / "run" / "embedded.yaml")


def parse(*argv: str) -> RunArguments:
    return parse_arguments(RunArguments, "test", list(argv))


def refused(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    return str(caught.value)


@pytest.mark.parametrize(
    "text", ["-9999", "-.5", "-3.4028234663852886e+38", "-1e-7", "-1.7976931348623157E308", "-1.e0"]
)
def test_negative_numbers_are_values_however_they_are_written(text: str) -> None:
    words = ["--config", EMBEDDED, "--dataset.name", "folder", "--dataset.root", "x", "--dataset.num_samples", "640"]
    config = parse(*words, "--dataset.image_size", "null", "--dataset.nodata", "0", text, "--dataset.offset", text)
    assert config.dataset.nodata == [0.0, float(text)] and config.dataset.offset == float(text)


def test_a_number_beyond_all_numbers_is_no_value() -> None:
    assert "--dataset.offset: expected one argument" in refused("--config", EMBEDDED, "--dataset.offset", "-1e999")


def test_a_home_folder_in_a_file_or_flag_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    data = ("--config", EMBEDDED, "--dataset.name", "folder", "--dataset.num_samples", "640")
    config = parse(*data, "--dataset.image_size", "null", "--dataset.root=~/floods", "--work_dir=~/runs")
    assert (config.dataset.root, config.work_dir) == ("/home/me/floods", "/home/me/runs")
    message = "'work_dir' must be the name of a file or folder ('.' for this one) or left out, not ''"
    assert message in refused("--config", EMBEDDED, "--work_dir", "")


def test_numbers_of_keys_without_a_type_are_numbers() -> None:
    config = parse("--config", EMBEDDED, "--encoder.random.layer_norm_eps", "1e-6", "--method.band_dropout", "1e-1")
    assert config.encoder.random is not None and config.encoder.random["layer_norm_eps"] == 1e-6
    assert config.method["band_dropout"] == 0.1


@pytest.fixture
def write(tmp_path: Path):
    def write(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_a_runs_own_file_neither_replaces_nor_continues_that_run(write, caplog: pytest.LogCaptureFixture) -> None:
    text = "encoder: {name_or_path: x}\noverwrite: true\nseed: 3"
    assert parse("--config", write("config.yaml", text)).overwrite and not caplog.messages
    write("log.jsonl", "")
    config = parse("--config", write("config.yaml", text))
    assert (config.overwrite, config.seed) == (False, 3)
    assert "config.yaml: overwrite True is of that run's own start, and ignored here" in caplog.text
    assert parse("--config", write("config.yaml", text), "--overwrite").overwrite


def test_precedence(write) -> None:
    named = write("named.yaml", "optimizer: {lr: 1.0, weight_decay: 1.0}\nhead: mlp\nscheduler: {gamma: 0.5}")
    run = write("run.yaml", f"segmentor_config: {Path(named).name}\nepochs: 7\nsegmentor: {{optimizer: {{lr: 2.0}}}}")
    typed = write("typed.yaml", "optimizer: {lr: 3.0}")
    encoder = ("--encoder.name_or_path", "x")
    config = parse("--config", run, *encoder)
    assert (config.segmentor.optimizer.lr, config.segmentor.optimizer.weight_decay) == (2.0, 1.0)
    assert (config.segmentor.head, config.segmentor.scheduler.gamma, config.epochs) == ("mlp", 0.5, 7)
    config = parse("--config", run, "--segmentor_config", typed, *encoder)
    assert config.segmentor.optimizer.lr == 3.0
    assert (config.segmentor.head, config.segmentor.optimizer.weight_decay) == ("linear", 0.05)
    config = parse("--segmentor.optimizer.lr=4", "--config", run, "--segmentor_config", typed, *encoder)
    assert config.segmentor.optimizer.lr == 4.0


def test_flags_reach_every_kind_of_value() -> None:
    config = parse(
        *("--config", EMBEDDED, "--bf16", "--epochs", "3", "--limited_label", "0.1", "--dataset.root", "2024"),
        *("--dataset.name", "folder"),
        *("--dataset.bands", "R", "G", "B", "N", "--encoder.random.hidden_size", "64", "--method.rank", "8"),
        *("--method.indices", "NDVI", "NDWI", "--segmentor.output_layers", "[1, 3]", "--encoder.revision", "null"),
        *("--segmentor.loss.class_weights", "balanced", "--segmentor.optimizer.betas", "0.8", "0.95"),
    )
    assert config.bf16 is True and config.epochs == 3 and config.dataset.limited_label == 0.1
    assert config.dataset.root == "2024" and config.dataset.bands == ["R", "G", "B", "N"]
    assert config.encoder.random is not None and config.encoder.random["hidden_size"] == 64
    assert config.encoder.random["model_type"] == "vit"
    assert config.method == {"rank": 8, "indices": ["NDVI", "NDWI"]}
    assert config.segmentor.output_layers == [1, 3] and config.encoder.revision is None
    assert config.segmentor.loss.class_weights == "balanced"
    assert config.segmentor.optimizer.betas == [0.8, 0.95]
    weights = parse("--config", EMBEDDED, "--segmentor.loss.class_weights", "1", "2.5").segmentor.loss.class_weights
    assert weights == [1.0, 2.5]


OFFICIAL = (
    "--config configs/run/default.yaml --encoder_config configs/foundation_models/prithvi.yaml "
    "--dataset_config configs/datasets/mados.yaml --segmentor_config configs/segmentors/upernet.yaml "
    "--augmentation_config configs/augmentations/segmentation_default.yaml --num_workers 4 --eval_interval 1"
)


def test_the_official_command_line_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    config = parse(*OFFICIAL.split(), "--finetune", "lora")
    assert (config.finetune, config.dataset.name, config.segmentor.head) == ("lora", "mados", "upernet")
    assert (config.num_workers, config.eval_interval, config.augmentation.random_crop) == (4, 1, "encoder")
    assert config.encoder.base_bands == ["B", "G", "R", "N2", "S1", "S2"]
    flags = "--work_dir x --limited_label -1 --seed 3 --batch_size 4 --epochs 2 --fp16 --ckpt_interval 7"
    config = parse(*OFFICIAL.split(), *flags.split(), "--log_interval", "5", "--resume_from", "last", "--use_wandb")
    assert (config.dataset.limited_label, config.tracker, config.resume_from) == (1.0, ["wandb"], "last")
    assert (config.ckpt_interval, config.log_interval, config.fp16) == (7, 5, True)


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ("", (None, 1000, None, 50, 8, 50)),
        ("--patience 3 --eval_steps 20", (None, 1000, None, 20, 3, 50)),
        ("--eval_interval 2 --ckpt_steps 9", (None, 1000, 2, None, 8, 9)),
        ("--max_steps 300", (None, 300, None, 50, None, None)),
        ("--epochs 20", (20, None, 5, None, None, None)),
        ("--epochs 20 --eval_steps 30", (20, None, None, 30, None, None)),
        ("--config configs/run/default.yaml", (80, None, 5, None, None, None)),  # the published protocol
    ],
)
def test_a_run_has_a_length_in_steps_unless_it_is_given(
    given: str, length: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    config = parse("--encoder.name_or_path", "x", *given.split())
    keys = ("epochs", "max_steps", "eval_interval", "eval_steps", "patience", "ckpt_steps")
    assert tuple(getattr(config, key) for key in keys) == length
    assert config.replace(seed=1) == parse("--encoder.name_or_path", "x", *given.split(), "--seed", "1")


@pytest.mark.parametrize(
    "typed", ["RUN user/name --private true", "--private true RUN user/name", "RUN --private true user/name"]
)
def test_names_stand_before_or_after_flags(typed: str) -> None:
    found = parse_arguments(PushArguments, "test", typed.split(), ("folder", "repo_id"))
    assert (found.folder, found.repo_id, found.private) == ("RUN", "user/name", True)


@pytest.mark.parametrize(
    "typed", ["a.tif m.tif --adapter RUN", "--adapter RUN a.tif m.tif", "--predict a.tif m.tif --adapter RUN"]
)
def test_files_stand_before_or_after_flags(typed: str) -> None:
    found = parse_arguments(PredictArguments, "test", typed.split(), ("predict",))
    assert (found.predict, found.adapter) == (["a.tif", "m.tif"], "RUN")
    with pytest.raises(ConfigError, match=r"unknown option 'b\.tif'"):
        parse_arguments(PushArguments, "test", ["RUN", "user/name", "b.tif"], ("folder", "repo_id"))


def test_official_names_in_files(write) -> None:
    run = write("run.yaml", "limited_label: 0.5\nuse_wandb: true\n")
    config = parse("--config", run, "--encoder.name_or_path", "x")
    assert (config.dataset.limited_label, config.tracker) == (0.5, ["wandb"])
    config = parse("--config", run, "--encoder.name_or_path", "x", "--use_wandb", "false", "--limited_label", "-1")
    assert (config.dataset.limited_label, config.tracker) == (1.0, [])
    config = parse("--config", run, "--encoder.name_or_path", "x", "--tracker", "tensorboard", "trackio")
    assert config.tracker == ["tensorboard", "trackio"]
    assert refused("--config", write("rank.yaml", "world_size: 2\n")).endswith(
        "rank.yaml: 'world_size' is set by accelerate, leave it out: accelerate launch --num_processes N train.py ..."
    )


def test_a_check_stops_before_the_configuration_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    idle = ["--config", EMBEDDED, "--segmentor.scheduler.gamma", "0.5", "--print_config"]
    with pytest.raises(ConfigError, match=r"segmentor\.scheduler\.gamma is for"):
        parse_arguments(RunArguments, "test", idle)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--finetune", "deflct"),
            "the command line: 'finetune' must be one of 'deflect', 'lora', 'slr', 'norm', 'bitfit', 'frozen' or "
            "'full' or peft:NAME with the name of one of PEFT's configurations, such as peft:VeraConfig, not "
            "'deflct'. Did you mean 'deflect'?",
        ),
        (("--encoder.gsd", "0"), "the command line: 'encoder.gsd' must be greater than 0 or 'data', not 0"),
        (("--encoder.mean", "0.1", "x", "0.2"), "the command line: 'encoder.mean[1]' must be a number, not 'x'"),
        (
            ("--max_steps", "9"),
            f"{EMBEDDED}: epochs and max_steps exclude each other: give one of them, and --epochs null or --max_steps",
        ),
        (("--eval_steps", "3"), f"{EMBEDDED}: eval_interval and eval_steps exclude each other: give one of them"),
    ],
)
def test_wrong_values_are_refused_in_plain_words(argv: tuple[str, ...], message: str) -> None:
    assert refused("--config", EMBEDDED, *argv).startswith(message)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--config", "configs/run/default.yaml"), "the command line: --config is given 2 times, "),
        (
            ("--lr", "1", "--segmentor.optimizer.lr", "2"),
            "'segmentor.optimizer.lr' is given twice, in two spellings, as ",
        ),
        (
            ("--method", "{rank: 4}", "--method.rank", "8"),
            "'method.rank' is given twice, in two spellings, as 4 and as 8",
        ),
    ],
)
def test_a_key_has_one_value_in_a_file_and_on_the_command_line(argv: tuple[str, ...], message: str, write) -> None:
    assert message in refused("--config", EMBEDDED, *argv)
    file = write("run.yaml", "lr: 1.0\nencoder: {name_or_path: x}\nsegmentor.optimizer.lr: 1.0\n")
    assert parse(file, "--config", file, "--method.rank", "4", "--method.rank", "8").method["rank"] == 8
    file = write("run.yaml", "segmentor.head: mlp\nencoder: {name_or_path: x}\nsegmentor: {head: conv}\n")
    assert (
        refused(file)
        == f"{file}: 'segmentor.head' is given twice, in two spellings, as 'mlp' and as 'conv': give it once"
    )


def test_mappings_may_be_merged(write) -> None:
    merged = parse(
        "--config", EMBEDDED, "--segmentor_config", write("merged.yaml", "optimizer: {<<: {lr: 0.5}, lr: 0.25}")
    )
    assert merged.segmentor.optimizer.lr == 0.25


def test_wrong_values_in_files_name_the_file(write) -> None:
    flags = write("flags.yaml", "noise: 0.1\n")
    named = write("named.yaml", "name: folder\nroot: x\n")
    encoder = ("--encoder.name_or_path", "x")
    folder = ("--dataset.name", "folder", "--dataset.root", "x")
    assert refused(*encoder, "--dataset_config", flags, *folder).startswith(
        f"{flags}: dataset: `noise` does nothing for the data set 'folder'"
    )
    message = refused(*encoder, "--dataset_config", named, "--dataset.noise", "0.1")
    assert message.startswith("the command line: dataset: `noise`")


OURS = sorted(set(CONFIGS.glob("*/*.yaml")) - set(CONFIGS.glob("accelerate/*")))


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_every_shipped_file_is_valid_and_opens_with_its_command(path: Path) -> None:
    groups = {"foundation_models": "encoder", "datasets": "dataset", "segmentors": "segmentor"}
    flag = {"run": "--config", "augmentations": "--augmentation_config"}.get(path.parent.name)
    flag = flag or f"--{groups[path.parent.name]}_config"
    encoder = () if path.name == "embedded.yaml" or flag == "--encoder_config" else ("--encoder.name_or_path", "x")
    data = ("--dataset.task", "segmentation") if "segmentation" in path.name else ()
    parse(flag, str(path), *encoder, *data)
    first = path.read_text().splitlines()[0]
    assert first.startswith(("# python train.py --config ", "# accelerate launch train.py --config "))
    command = " ".join(line.lstrip("# ") for line in path.read_text().split("\n#\n")[0].splitlines())
    words = command.split()
    flags = [words[i + 1] for i, word in enumerate(words) if word.endswith("config")]
    assert all((CONFIGS.parent / name).is_file() for name in flags)
    arguments = words[words.index("train.py") + 1 :]
    parse(*[str(CONFIGS.parent / word) if word.startswith("configs/") else word for word in arguments])


def test_the_resolved_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = parse(
        "--config", EMBEDDED, "--method.rank", "4", "--encoder.mean", "1", "2", "3", "--encoder.std", "[1,1,1]"
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(RunArguments, path) == config
    assert parse("--config", str(path)) == config


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--config", EMBEDDED, "--epochs", "3", "--print_config")
    assert stop.value.code == 0
    assert "epochs: 3\n" in capsys.readouterr().out


@pytest.mark.parametrize("schema", [RunArguments, EvaluateArguments])
def test_help_tells_every_key(schema: type) -> None:
    text = build_parser(schema, "test").format_help()
    for leaf in keys_of(schema).values():
        assert f"--{leaf.key} " in text
        assert leaf.help, leaf.key


def test_outside_of_a_clone_configs_are_those_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_arguments(RunArguments, "test", ["configs/run/embedded.yaml"])
    assert config.dataset.name == "synthetic" and config.epochs == 6


def test_the_reference_of_the_configuration_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m deflect_hf.reference"


def test_the_learning_rate_is_the_method_s_own_unless_it_is_given(write) -> None:
    mine = write("mine.yaml", "lr: auto\nencoder: {random: {model_type: vit}}\n")
    assert parse(mine).segmentor.optimizer.lr == "auto"
    assert parse(mine, "--lr", "1e-2").segmentor.optimizer.lr == 1e-2
    for method, rate in (("deflect", 1e-3), ("full", 1e-4), ("lora", 3e-3), ("peft:VeraConfig", 3e-3)):
        assert parse(mine, "--lr", "null", "--finetune", method).segmentor.optimizer.lr == rate
    assert refused(mine, "--lr", "fast").endswith("must be a number or 'auto', not 'fast'")


def test_what_is_no_text_or_no_configuration_is_refused(write) -> None:
    assert "half a character" in refused(write("a.yaml", 'work_dir: "a\\ud800"\n'))
    assert "larger than" in refused("--config", "/dev/zero")
