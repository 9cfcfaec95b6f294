"""Adapt a vision transformer to multispectral images.

    python train.py --config configs/run/embedded.yaml
    accelerate launch train.py --config configs/run/default.yaml --finetune deflect
        --encoder_config configs/foundation_models/vit_hub.yaml --dataset_config configs/datasets/water.yaml
        --segmentor_config configs/segmentors/linear.yaml
        --augmentation_config configs/augmentations/segmentation_default.yaml

    python train.py --eval_dir work-dir/RUN        the same as evaluate.py, which has a --help of its own

Any key of a configuration file is also a flag (--segmentor.optimizer.lr 1e-3).
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def postponed_package(name: str):
    """Enter a package without its `__init__`, which loads torch and PEFT: help needs neither. Returns what runs it."""
    if name in sys.modules:
        return lambda: None
    spec = importlib.util.find_spec(name)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return lambda: spec.loader.exec_module(sys.modules[name])


def evaluates(argv: Sequence[str]) -> bool:
    """Whether this is an evaluation, which the official code's one script does as well: --eval_dir, no --config."""
    typed = {word.partition("=")[0] for word in argv}
    return "--eval_dir" in typed and "--config" not in typed


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    words = sys.argv[1:] if argv is None else list(argv)
    if evaluates(words):
        runpy.run_path(str(Path(__file__).with_name("evaluate.py")), run_name="evaluate")["main"](words)
        return
    run_package = postponed_package("deflect_hf")
    from deflect_hf.config.compose import parse_arguments
    from deflect_hf.config.methods import METHOD_OPTIONS
    from deflect_hf.config.run import RunArguments
    from deflect_hf.errors import show_log, user_errors
    from deflect_hf.evaluation.tables import results_text
    from deflect_hf.training.distributed_exit import distributed_exit

    with distributed_exit(), user_errors(words):
        config = parse_arguments(RunArguments, __doc__ + METHOD_OPTIONS, words)
        run_package()
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


if __name__ == "__main__":
    main()
