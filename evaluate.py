"""Evaluate a trained model: scores, confusion matrix and prediction panels.

    python evaluate.py --eval_dir work-dir/RUN
    python evaluate.py --eval_dir work-dir/RUN/best --split val --dataset.root FOLDER --output_dir FIGURES
    python evaluate.py --eval_dir work-dir/RUN --drop_bands

Needs that folder and the base encoder, nothing else of the run.
"""

from __future__ import annotations

import sys

from deflect_hf.training.arguments import EvaluateArguments
from deflect_hf.training.cli import drop_table, score_table, show_log, user_errors
from deflect_hf.training.compose import parse_arguments


def main() -> None:
    """Parse, evaluate, print."""
    with user_errors(sys.argv):
        arguments = parse_arguments(EvaluateArguments, __doc__ or "")
        from deflect_hf.training.report import report

        show_log()
        results, output = report(arguments)
        if output is not None:
            print(f"{results['split']}, {results['images']} images: {score_table(results)}")
            if "drop_bands" in results:
                print(f"\n{drop_table(results['drop_bands'])}")
            print(f"\nScores, confusion matrix and panels are in {output}")


if __name__ == "__main__":
    main()
