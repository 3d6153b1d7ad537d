"""The deep ranker: crosses, target attention and several heads, trained in torch and exported to ONNX.

``rows`` (what it learns from) → ``inputs`` (columns become numbers around 0) → ``model`` → ``fit`` → ``calibration`` and
``distill`` → ``export`` (files of a bundle, which :class:`headwater.ranking.deep.DeepRanker` serves without torch).
"""

from headwater.learning.deep.fit import FitReport, Objective, fit_deep
from headwater.learning.deep.rows import RankingRows

__all__ = ["FitReport", "Objective", "RankingRows", "fit_deep"]
