"""An MLServer runtime that scores rows with the ranker of a Headwater bundle: the other end of ``ranker.remote``.

MLServer reads ``model-settings.json`` beside this file or in any folder below the one that it is started with::

    {"name": "headwater", "implementation": "headwater_ranker.HeadwaterRanker",
     "parameters": {"uri": "/data/models/bundles/VERSION", "version": "VERSION"}}

``pip install headwater mlserver`` in one environment, this file on the ``PYTHONPATH``.
"""

from __future__ import annotations

from pathlib import Path

from mlserver import MLModel
from mlserver.errors import InferenceError, ModelNotReady
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataModelResponse,
    MetadataTensor,
    Parameters,
    ResponseOutput,
)

from headwater.ranking.ranker import Ranker, RankerError, open_ranker
from headwater.ranking.remote import from_tensors
from headwater.registry.bundle import BundleError, load_bundle


class HeadwaterRanker(MLModel):  # type: ignore[misc]
    """The ranker of the bundle at ``parameters.uri``, whose version must be ``parameters.version``."""

    _ranker: Ranker | None = None
    _plan_hash = ""

    async def load(self) -> bool:
        """Check every byte of the bundle and open its ranker.

        Raises:
            BundleError, RankerError: the bundle is damaged, of another version, or holds no ranker.
        """
        path = Path(self.settings.parameters.uri)
        bundle = load_bundle(path, plan_hash=None)
        if bundle.version != self.version:
            raise BundleError(
                f"{path} is version {bundle.version}, parameters.version is {self.version}; make them equal"
            )
        manifest = bundle.manifest
        ranker = open_ranker(manifest.ranker, bundle.files, manifest.columns)
        if ranker is None:
            raise RankerError(f"{path} holds no ranker; train with ranker.kind = lightgbm or deep")
        self._ranker, self._plan_hash = ranker, manifest.plan_hash
        self.inputs = [MetadataTensor(name="features", datatype="FP32", shape=[-1, len(manifest.columns)])]
        self.outputs = [MetadataTensor(name="scores", datatype="FP32", shape=[-1])]
        return True

    async def metadata(self) -> MetadataModelResponse:
        """What the protocol asks for, and the plan that the rows belong to."""
        return MetadataModelResponse(
            name=self.name, versions=[self.version], platform="headwater", inputs=self.inputs, outputs=self.outputs,
            parameters=Parameters(plan_hash=self._plan_hash),
        )  # fmt: skip

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """``features`` (and what an attending ranker looks at) to ``scores``."""
        ranker = self._ranker
        if ranker is None:
            raise ModelNotReady(self.name, self.version)
        try:
            given = {tensor.name: (tensor.shape, tensor.data.root) for tensor in payload.inputs}
            scores = ranker.score(*from_tensors(given))
        except RankerError as error:
            raise InferenceError(str(error)) from error
        output = ResponseOutput(name="scores", shape=[len(scores)], datatype="FP32", data=scores.tolist())
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])

    async def unload(self) -> bool:
        """Let go of the ranker."""
        if self._ranker is not None:
            self._ranker.close()
            self._ranker = None
        return True
