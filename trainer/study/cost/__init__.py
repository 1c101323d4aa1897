"""What α* costs on this machine, each way to it beside a plain step: Table 4.1 of the published study.

For example:

    from trainer.study.cost.table import cost_study

    table = cost_study(CostConfig(), Path("DIR"), said=print)  # and DIR/index.html, DIR/cost.csv
"""

from __future__ import annotations

from trainer.study.cost.options import CostConfig

__all__ = ["CostConfig"]
