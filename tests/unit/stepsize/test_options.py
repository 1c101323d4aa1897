"""What may be measured together, and how a contradiction is said."""

from __future__ import annotations

from typing import Any

import pytest

from stepsize.errors import MeasurementError
from stepsize.options import MeasuringOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"estimators": ("unbiased", "fast")}, "estimators: 'fast'"),
        ({"method": "reverse"}, "method: 'reverse'"),
        ({"precision": "float16"}, "precision: 'float16'"),
        ({"precision": "bfloat16", "method": "secant"}, "precision: 'bfloat16'"),
        ({"diagnostics": "some"}, "diagnostics: 'some'"),
        ({"method": "secant", "estimators": ("unbiased", "biased")}, "the unbiased ggn estimate alone"),
        ({"method": "secant", "curvature": "fisher"}, "method: 'secant'"),
        ({"method": "secant", "diagnostics": "full"}, "method: 'secant'"),
        ({"method": "secant", "per_group": True}, "method: 'secant'"),
        ({"probe_fraction": 0.0}, "probe_fraction: 0.0"),
        ({"probe_fraction": 1.5}, "probe_fraction: 1.5"),
        ({"probe_fraction": float("nan")}, "probe_fraction: nan"),
    ],
)
def test_errors_name_the_option_and_its_value_in_one_line(values: dict[str, Any], message: str):
    with pytest.raises(MeasurementError) as caught:
        MeasuringOptions(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
