"""The SQNR that each type typically has, for estimates of errors that nobody measured.

Measured by weightcast's own kernels on Gaussian weights [256, 4096]; real weights have heavier
tails, which cost all types some decibels, so that differences of types carry over better than the
numbers themselves. `python -m benchmarks.typical_sqnr` prints the table anew.
"""

from __future__ import annotations

from typing import Final

# In dB.
TYPICAL_SQNR: Final[dict[str, float]] = {
    "F16": 73.7,
    "BF16": 55.6,
    "Q4_0": 21.3,
    "Q4_1": 22.1,
    "Q5_0": 27.4,
    "Q5_1": 28.4,
    "Q8_0": 45.4,
    "Q1_0": 4.4,
    "Q2_0": 2.9,
    "TQ1_0": 1.9,
    "TQ2_0": 1.9,
    "MXFP4": 18.8,
    "NVFP4": 19.7,
    "Q2_K": 10.6,
    "Q3_K": 16.4,
    "Q4_K": 22.9,
    "Q5_K": 28.8,
    "Q6_K": 35.0,
    "IQ4_NL": 22.4,
    "IQ4_XS": 22.3,
    "IQ3_S": 15.6,
    "IQ3_XXS": 13.4,
    "IQ2_S": 11.5,
    "IQ2_XS": 10.5,
    "IQ2_XXS": 9.3,
    "IQ1_M": 4.7,
    "IQ1_S": 6.3,
    "INT4-G32": 21.8,
    "INT4-G32-ASYM": 22.3,
    "INT4-G64": 20.9,
    "INT4-G64-ASYM": 21.2,
    "INT4-G128": 20.3,
    "INT4-G128-ASYM": 20.5,
    "INT4-G256": 19.9,
    "INT4-G256-ASYM": 20.0,
    "INT4-CHANNEL": 19.4,
    "INT4-CHANNEL-ASYM": 19.3,
    "INT8-G32": 46.3,
    "INT8-G32-ASYM": 47.3,
    "INT8-G64": 45.1,
    "INT8-G64-ASYM": 46.0,
    "INT8-G128": 44.2,
    "INT8-G128-ASYM": 44.9,
    "INT8-G256": 43.4,
    "INT8-G256-ASYM": 44.0,
    "INT8-CHANNEL": 41.5,
    "INT8-CHANNEL-ASYM": 41.8,
}
