"""The data sets that ``dataset.name`` can name: one file each, called as the data set with ``_`` for ``-``.

A file is found by its name and has two things: ``DATASET``, a :class:`~deflect_hf.config.readers.DatasetSpec` (for a
public release a :class:`~deflect_hf.data.public.PublicDataset`) with the configuration keys it looks at, and
``load(args, processor=None)``, from the configuration to the splits. Nothing else lists them.
"""
