"""The lines of a record file: where each lies, and how old ones are merged into blocks so that the file stays small."""

from trainer.records.lines.index import Extent, LineIndex, index_lines, not_taken_back

__all__ = ["Extent", "LineIndex", "index_lines", "not_taken_back"]
