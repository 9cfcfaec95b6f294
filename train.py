"""Adapt a vision transformer to multispectral images.

    python train.py --config configs/run/embedded.yaml
    accelerate launch train.py --config configs/run/default.yaml --finetune deflect
        --encoder_config configs/foundation_models/vit_hub.yaml --dataset_config configs/datasets/water.yaml
        --segmentor_config configs/segmentors/linear.yaml
        --augmentation_config configs/augmentations/segmentation_default.yaml

    python train.py --batch_size 1 --eval_dir work-dir/RUN        the same as evaluate.py, which has a --help of its own

Any key of a configuration file is also a flag (--segmentor.optimizer.lr 1e-3). `method` takes the options of
--finetune, as --method.NAME VALUE:
    deflect   rank, aux_dim, indices, layers_to_transform, band_dropout
    lora      patch_embed, rank, alpha, dropout, target
    slr       patch_embed, rank, target, train_norms
    norm      patch_embed
    bitfit    patch_embed, target
    frozen    patch_embed
    full      patch_embed
    peft:NAME patch_embed, target, and the fields of PEFT's configuration NAME, such as VeraConfig
patch_embed: frozen shows the encoder its base bands; repeat and rgb+random all bands, through a patch embedding that is
trained and starts as copies of the pretrained kernel, or with noise for the other bands.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path


def postponed_package(name: str):
    """Enter a package without running its `__init__`; returns what runs it.

    `import deflect_hf` loads torch and PEFT. The command line needs neither: help and mistakes answer at once.
    """
    if name in sys.modules:
        return lambda: None
    spec = importlib.util.find_spec(name)
    package = importlib.util.module_from_spec(spec)
    sys.modules[name] = package
    return lambda: spec.loader.exec_module(package)


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
    from deflect_hf.errors import user_errors
    from deflect_hf.training.arguments import RunArguments
    from deflect_hf.training.cli import score_table, show_log
    from deflect_hf.training.combinations import refuse_idle_keys
    from deflect_hf.training.compose import parse_arguments
    from deflect_hf.training.leaving import leaving_together

    with leaving_together(), user_errors(words):
        config = parse_arguments(RunArguments, __doc__, words, check=refuse_idle_keys)
        run_package()
        from deflect_hf.hub.runs import Publication, finish
        from deflect_hf.training.run import run

        show_log()
        publication = Publication.of(config)
        results, work_dir, first = run(config, publication.publish if publication is not None else None)
        if first:
            for split in ("val", "test"):
                if split in results:
                    print(f"\n{split}: {score_table(results[split])}")
            print(f"\n{work_dir}: best/ holds the trained model. Look at it: python evaluate.py --eval_dir {work_dir}")
            url = finish(work_dir, publication)
            if url is not None:
                print(f"It is on the Hub: {url}")


if __name__ == "__main__":
    main()
