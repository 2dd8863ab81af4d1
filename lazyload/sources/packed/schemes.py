"""The schemes of packed weights, by their `quant_method`."""

from collections.abc import Callable, Mapping

from lazyload.config_json.fields import Fields
from lazyload.sources.packed.awq import AWQ
from lazyload.sources.packed.compressed_tensors import CompressedTensors
from lazyload.sources.packed.fp8 import FP8
from lazyload.sources.packed.gptq import GPTQ
from lazyload.sources.packed.modelopt import ModelOpt
from lazyload.sources.packed.mxfp4 import MXFP4
from lazyload.sources.packed.packed import Scheme

SCHEMES: Mapping[str, Callable[[Fields], Scheme]] = {
    "fp8": FP8.read,
    "fbgemm_fp8": FP8.read,
    "mxfp8": FP8.read,
    "mxfp4": MXFP4.read,
    "gptq": GPTQ.read,
    "awq": AWQ.read,
    "compressed-tensors": CompressedTensors.read,
    "modelopt": ModelOpt.read,
    "modelopt_fp4": ModelOpt.read,
    "modelopt_mixed": ModelOpt.read,
}
