"""Evaluate a trained model on a data set, or predict maps of scenes with it.

    python evaluate.py --eval_dir work-dir/RUN
    python evaluate.py --eval_dir work-dir/RUN/best --split val --dataset.root FOLDER --output_dir FIGURES
    python evaluate.py --eval_dir work-dir/RUN --drop_bands
    python evaluate.py --predict IN.tif OUT.tif --adapter work-dir/RUN

Evaluation writes scores, confusion matrix and prediction panels; it needs that folder and the base encoder, nothing
else of the run. Prediction has flags of its own: python evaluate.py --predict --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from train import postponed_package


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, evaluate or predict, print."""
    words = sys.argv[1:] if argv is None else list(argv)
    run_package = postponed_package("deflect_hf")
    from deflect_hf.config.compose import parse_arguments
    from deflect_hf.config.run import EvaluateArguments
    from deflect_hf.errors import show_log, user_errors
    from deflect_hf.evaluation.tables import drop_table, score_table
    from deflect_hf.inference import cli
    from deflect_hf.training.distributed_exit import distributed_exit

    with distributed_exit(), user_errors(words):
        if "--predict" in words:
            predict_arguments = cli.parse(words)
            run_package()
            cli.predict(predict_arguments)
            return
        arguments = parse_arguments(EvaluateArguments, __doc__, words)
        run_package()
        from deflect_hf.evaluation.report import report

        show_log()
        results, output = report(arguments)
        if output is not None:
            print(f"{results['split']}, {results['images']} images: {score_table(results)}")
            if "drop_bands" in results:
                print(f"\n{drop_table(results['drop_bands'])}")
            print(f"\nScores, confusion matrix and panels are in {output}")


if __name__ == "__main__":
    main()
