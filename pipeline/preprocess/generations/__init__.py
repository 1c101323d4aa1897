"""One generation of a data folder: what it is made from, where its files are named, and what the manifest says of it.

>>> addition = plan_addition(config, Manifest.load(config.out))   # the sources that are not in the folder yet
>>> records = ...                                                 # their parts, encoded as those of a new folder
>>> list_generation(addition, Workplace(config.out, APPENDING), records, Manifest.load(config.out))
"""

from __future__ import annotations

from pipeline.preprocess.generations.addition import Addition, plan_addition
from pipeline.preprocess.generations.listing import already_listed, list_generation
from pipeline.preprocess.generations.remote_out import RemoteOut

__all__ = ["Addition", "RemoteOut", "already_listed", "list_generation", "plan_addition"]
