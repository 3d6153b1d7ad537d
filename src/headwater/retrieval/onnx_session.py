"""ONNX models of a bundle, opened so that they read no other file and wake no other thread."""

from __future__ import annotations

import onnxruntime

# Weights outside the file are named by an entry with this key, in whatever tensor of the model they are.
_ELSEWHERE = b"location"


class OnnxError(ValueError):
    """Bytes that are no ONNX model of ours."""


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    """A session on the calling thread alone.

    Raises:
        OnnxError: weights outside the file, or nothing that ONNX Runtime can read.
    """
    if _ELSEWHERE in data:
        raise OnnxError("it names data outside the file, which no bundle vouches for")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise OnnxError(f"ONNX Runtime cannot read it: {error}") from error
