"""The contract of a tokeniser: a model that lists `encode` and `decode` in `methods`.

`Run.encode`, `Run.codebooks`, `kvae.tokenize`, `kvae.export` and model cards rely on these methods and attributes:

    encode(images)      codes by codebook, int32 [b, h', w'] or [b, h', w', q], of images uint8 [b, h, w, 3]
    decode(codes)       images uint8 [b, h, w, 3] of codes by codebook
    __call__(images)    creates all variables, so that the shapes of saved variables can be checked
    quantizers          quantiser layers by codebook
    code_strides        side of the square that one code covers, in pixels, by codebook
    mean, std           fields, the mean and standard deviation of each channel on the 0-255 scale
"""

from kvae.core.errors import InputError
from kvae.core.image_arrays import IMAGE_STATISTICS
from kvae.models.model import Model

ATTRIBUTES = ("quantizers", "code_strides", *IMAGE_STATISTICS)
"""Names of the attributes of a tokeniser."""


def is_tokeniser(model: Model) -> bool:
    """Returns True if a model encodes images and decodes codes."""
    return {"encode", "decode"} <= {*model.methods}


def check_tokeniser(model: Model) -> None:
    """Raises InputError if a model lists `encode` and `decode` in `methods` but lacks an attribute of a tokeniser."""
    if not is_tokeniser(model):
        return
    missing = [name for name in ATTRIBUTES if not hasattr(model, name)] + ["__call__"] * (not callable(model))
    if missing:
        raise InputError(
            f"{type(model).__name__} lists encode and decode in methods but has no {' and no '.join(missing)}; "
            "kvae.models.tokenisers documents what such a model needs"
        )
