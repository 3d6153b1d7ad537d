"""Implicit alternating least squares (Hu, Koren and Volinsky 2008), by the library ``implicit``; the item factors are kept."""

from __future__ import annotations

import numpy as np
import structlog
from scipy.sparse import csr_matrix

from headwater.learning.fitting import FitError
from headwater.learning.interactions import binary
from headwater.learning.sequences import Sequences
from headwater.retrieval.als import als_files
from headwater.retrieval.latest import Recency
from headwater.schema.models import AlsModel

# a next event depends on the last few: chosen on the validation part of MovieLens-1M (docs/log.md)
RECENCY = Recency(depth=1_024, discount=0.8, gap_s=1_800, across=1.0)

log = structlog.get_logger()


def fit_als(
    sequences: Sequences, params: AlsModel, *, seed: int, threads: int, recency: Recency = RECENCY
) -> dict[str, bytes]:
    """The files of the source ``als``. An item that a user had counts with the confidence ``1 + alpha``.

    Raises:
        FitError: the library ``implicit`` is not installed.
    """
    try:
        from implicit.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise FitError(
            "the source als is trained by the library implicit, which is not installed: pip install 'headwater[train]', "
            "or set sources.als.enabled to false"
        ) from error
    items, column = np.unique(sequences.items, return_inverse=True)
    users = binary(sequences.owner, column.astype(np.int64), len(sequences.users), len(items))
    users.data[:] = 1.0 + params.alpha
    with threadpool_limits(1, user_api="blas"):  # its threads and those of BLAS would wait for each other
        model = AlternatingLeastSquares(
            factors=params.size, regularization=params.l2, alpha=1.0, iterations=params.iterations, num_threads=threads,
            random_state=seed, dtype=np.float32, use_gpu=False,
        )  # fmt: skip
        model.fit(csr_matrix(users), show_progress=False)
    factors = np.zeros((int(items[-1]) + 1, params.size), np.float32)
    factors[items] = model.item_factors
    if not np.isfinite(factors).all():
        raise FitError("ALS did not converge to finite factors: choose a larger models.als.l2")
    log.info("als_fitted", items=len(items), users=len(sequences.users), size=params.size)
    return als_files(factors, params.alpha, params.l2, recency)
