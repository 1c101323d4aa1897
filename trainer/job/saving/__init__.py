"""How a checkpoint gets onto a disk that is full, or has been: room made for it, patience, and a forecast."""

from trainer.job.saving.backoff import Backoff
from trainer.job.saving.disk_space import forecast_of, size_text, watched_disk
from trainer.job.saving.room import SaveAttempt, lacks_space

__all__ = ["Backoff", "SaveAttempt", "forecast_of", "lacks_space", "size_text", "watched_disk"]
