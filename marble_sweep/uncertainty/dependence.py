"""How far the members of a series depend on their neighbours, estimated from the series itself."""

import math

import numpy as np
from numpy.typing import NDArray

QUIET_LAGS = 5  # so many autocorrelations in a row must be insignificant
SIGNIFICANT = 2.0  # times √(log10(n) / n)


def dependence_length(series: NDArray[np.float64]) -> float:
    """Σ |k| γ_k / Σ γ_k over the autocovariances γ_k of a series (n,), in members; 0 where none is significant.

    The mean of a block of b members has a variance smaller than in an endless block by this length / b of it, as the
    block's ends cut through what belongs together. For γ_k = ρ^|k| it is 2ρ / (1 - ρ²).

    Both sums are estimated as by Politis and White ("Automatic block-length selection for the dependent bootstrap",
    Econometric Reviews 23, 2004; corrected with Patton in 28, 2009): with the flat-top lag window of Politis and Romano
    (1995), as wide as twice the lag beyond which QUIET_LAGS autocorrelations are insignificant. Their block length
    serves a bootstrap's mean squared error; ours (clusters.py) an interval's coverage.
    """
    num = len(series)
    max_lag = min(num - 1, math.ceil(math.sqrt(num)) + QUIET_LAGS)
    if max_lag <= QUIET_LAGS:
        return 0.0
    covariances = autocovariances(series, max_lag)
    if covariances[0] <= 0:
        return 0.0
    limit = SIGNIFICANT * math.sqrt(math.log10(num) / num) * covariances[0]
    significant = np.flatnonzero(np.abs(covariances[1:]) >= limit) + 1
    if len(significant) == 0 or significant[0] > QUIET_LAGS:
        return 0.0
    gaps = np.flatnonzero(np.diff(significant) > QUIET_LAGS)
    last = significant[gaps[0]] if len(gaps) else significant[-1]
    width = min(2 * int(last), num - 1)
    lags = np.arange(1, width + 1)
    weighted = np.clip(2 * (1 - lags / width), 0, 1) * autocovariances(series, width)[1:]
    variance = covariances[0] + 2 * weighted.sum()
    return max(0.0, 2 * float((lags * weighted).sum() / variance)) if variance > 0 else 0.0


def autocovariances(series: NDArray[np.float64], max_lag: int) -> NDArray[np.float64]:
    """γ_0 … γ_max_lag of a series (n,), each divided by n."""
    residuals = series - series.mean()
    num = len(residuals)
    return np.array([residuals[lag:] @ residuals[: num - lag] for lag in range(max_lag + 1)]) / num
