"""The former name of :mod:`deflect_hf.benchmark.pretrain`, whose command line still runs."""

import logging
import runpy

if __name__ == "__main__":
    logging.getLogger("deflect_hf").warning("use python -m deflect_hf.benchmark.pretrain: this name will go")
    runpy.run_module("deflect_hf.benchmark.pretrain", run_name="__main__", alter_sys=True)
