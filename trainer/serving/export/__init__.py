"""A run's weights as files that need nothing of this project: a torch program, ONNX, an encoder and a card.

For example:

    export_run("RUN", Path("clicks"), say=print)   # clicks/model.pt2, model.onnx, encode.py, card.json, card.html
"""

from __future__ import annotations

from trainer.serving.export.exporting import encoder_source, export_run

__all__ = ["encoder_source", "export_run"]
