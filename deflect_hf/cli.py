"""The programs `deflect-train` (train.py) and `deflect-evaluate` (evaluate.py); `inference` has `deflect-predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deflect_hf.config.compose import parse_arguments
from deflect_hf.config.methods import methods_help
from deflect_hf.config.run import EvaluateArguments, RunArguments
from deflect_hf.errors import counted, show_log, user_errors
from deflect_hf.training.distributed_exit import distributed_exit

TRAIN = """Adapt a vision transformer to multispectral images.

    python train.py configs/run/embedded.yaml
    accelerate launch train.py --config configs/run/default.yaml --finetune deflect
        --encoder_config configs/foundation_models/vit_hub.yaml --dataset_config configs/datasets/water.yaml
        --segmentor_config configs/segmentors/linear.yaml
        --augmentation_config configs/augmentations/segmentation_default.yaml

    python train.py --eval_dir work-dir/RUN        the same as evaluate.py, which has a --help of its own

Any key of a configuration file is also a flag (--segmentor.optimizer.lr 1e-3). One file may hold all keys.
"""
EVALUATE = """Evaluate a trained model on a data set, or predict maps of scenes with it.

    python evaluate.py --eval_dir work-dir/RUN
    python evaluate.py --eval_dir work-dir/RUN/best --split val --dataset.root FOLDER --output_dir FIGURES
    python evaluate.py --eval_dir work-dir/RUN --drop_bands
    python evaluate.py --predict IN.tif OUT.tif --adapter work-dir/RUN

Evaluation writes scores, their picture and prediction panels; it needs that folder and the base encoder, nothing
else of the run. Prediction has flags of its own: python evaluate.py --predict --help
"""


def train(argv: Sequence[str] | None = None) -> None:
    """Parse, train, print. ``--eval_dir`` without a configuration evaluates, as the official code's one script does."""
    words = sys.argv[1:] if argv is None else list(argv)
    flags = {word.partition("=")[0] for word in words}
    if "--eval_dir" in flags and "--config" not in flags and not words[0].endswith((".yaml", ".yml")):
        evaluate(words)
        return
    with distributed_exit(), user_errors(words):
        config = parse_arguments(RunArguments, TRAIN + methods_help(), words)
        from deflect_hf.evaluation.tables import results_text  # torch and PEFT: not before --help and mistakes
        from deflect_hf.hub.push import Publication
        from deflect_hf.training.run import run

        show_log()
        publication = Publication.of(config)
        results, work_dir, first = run(config, publication.publish)
        if first:
            print(results_text(results, work_dir))
            url = publication.finish(work_dir)
            if url is not None:
                print(f"It is on the Hub: {url}")


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Parse, evaluate or predict, print."""
    words = sys.argv[1:] if argv is None else list(argv)
    if "--predict" in words:
        from deflect_hf.inference import cli

        cli.main(words)
        return
    with distributed_exit(), user_errors(words):
        arguments = parse_arguments(EvaluateArguments, EVALUATE, words)
        from deflect_hf.evaluation.report import report
        from deflect_hf.evaluation.tables import drop_table, score_table

        show_log()
        results, output = report(arguments)
        if output is not None:
            print(f"{results['split']}, {counted(results['images'], 'image')}: {score_table(results)}")
            if "drop_bands" in results:
                print(f"\n{drop_table(results['drop_bands'])}")
            print(f"\nScores, their picture and panels are in {output}")
