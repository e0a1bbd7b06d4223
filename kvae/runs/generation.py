"""Samples codes from a run whose model is a prior, and checks the tokeniser that decodes them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from kvae.core.errors import InputError, check_names, choose, short_repr
from kvae.core.fields import Natural, NotNegative, Probability, validate
from kvae.models.priors.sampling import Filter

if TYPE_CHECKING:
    from kvae.runs.run import Run


def split_key(key: jax.Array, numbers: Iterable[int]) -> jax.Array:
    """Returns a key for each image; image i depends only on the key and on i.

    Raises:
      InputError: The key is not a single JAX random key.
    """
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise InputError(f"key is {short_repr(key)}; it must be a JAX random key, such as jax.random.key(0)")
    numbers = np.asarray(list(numbers), np.uint32)
    if not numbers.size:
        raise InputError("count is 0; it must be an integer >= 1")
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def sample_codes(
    run: "Run",
    keys: jax.Array,
    *,
    label: str | int | Sequence[str | int] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    codes: Mapping[str, np.ndarray] | None = None,
    mask: Mapping[str, np.ndarray] | None = None,
    report: Callable[[int], Any] = lambda positions: None,
) -> dict[str, np.ndarray]:
    """Samples the codes of n images from a prior.

    Args:
      run: A run whose model is a prior.
      keys: Random keys [n].
      label: The class to sample, by name or number, or one class for each image. A conditional prior without `label`
        draws classes at random, all equally likely.
      temperature: Below 1, likely codes become more likely; 0 takes the likeliest code.
      top_k: Draw only from the k likeliest codes; 0 allows all.
      top_p: Draw only from the fewest likeliest codes whose probabilities sum to `top_p`.
      codes: Codes of n images, or of one image for all. The part that `mask` marks is sampled again ("in-painting").
        `mask` is then required.
      mask: By codebook, a bool array of the shape of an image's codes: True where codes are sampled. A sampled code
        depends on all codes before it in reading order, but not on kept codes after it.
      report: Called with the number of positions done since the last call.

    Returns:
      A dict by codebook: int32 [n, h', w'], or [n, h', w', q].

    Raises:
      InputError: The model is not a prior, or an option is invalid.
    """
    if not hasattr(run.model, "sample"):
        kind = type(run.model).__name__
        raise InputError(f"{run.workdir} is a run of {kind}, which is not a prior; train configs/tokens_prior.py")
    options = Filter(
        validate("temperature", temperature, NotNegative),
        validate("top_k", top_k, Natural),
        validate("top_p", top_p, Probability),
    )
    if (codes is None) != (mask is None):
        raise InputError("codes and mask must be given together: the mask chooses the codes that are sampled")
    if codes is not None:
        codes, mask = _kept(run, len(keys), codes, mask)
    labels = _labels(run, keys, label)
    return run.model.sample(run.variables, keys, label=labels, options=options, codes=codes, mask=mask, report=report)


def _labels(run: "Run", keys: jax.Array, label: Any) -> jax.Array | None:
    """Returns the class of each image, int32 [n]; None for a prior without classes."""
    names = run.config["model"].get("label_names", ())
    if not names:
        if label is not None:
            raise InputError(
                f"label is {short_repr(label)}; {run.workdir} was trained without labels (model.conditional=False)"
            )
        return None
    if label is None:
        # A separate stream, so that the codes do not depend on how the class was chosen.
        streams = jax.vmap(jax.random.fold_in, (0, None))(keys, 2**32 - 1)
        return jax.vmap(lambda key: jax.random.randint(key, (), 0, len(names)))(streams)
    chosen = [label] * len(keys) if isinstance(label, (str, int, np.integer)) else list(label)
    if len(chosen) != len(keys):
        raise InputError(
            f"label has {len(chosen)} entries; it must be one class, or one for each of {len(keys)} images"
        )
    numbers = {str(number): number for number in range(len(names))} | {name: i for i, name in enumerate(names)}
    return jnp.asarray([choose("label", str(one), numbers) for one in chosen], jnp.int32)


def _kept(
    run: "Run", count: int, codes: Mapping[str, Any], mask: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns codes and masks as arrays [n, ...] by codebook."""
    arrays, masks = {}, {}
    for name, shape, size, *_ in run.config["model"]["codebooks"]:
        for what, values in (("codes", codes), ("mask", mask)):
            check_names(what, values, [name for name, *_ in run.config["model"]["codebooks"]])
            if name not in values:
                raise InputError(f"{what} lack the codebook {name!r}")
        array, chosen = np.asarray(codes[name]), np.asarray(mask[name])
        if array.shape not in [(1, *shape), (count, *shape)] or array.dtype.kind not in "iu":
            raise InputError(
                f"codes of {name!r} are {array.dtype}{list(array.shape)}; they must be int{[count, *shape]} or "
                f"int{[1, *shape]}"
            )
        if array.min() < 0 or array.max() >= size:
            raise InputError(
                f"codes of {name!r} are from {array.min()} to {array.max()}; they must be from 0 to {size - 1}"
            )
        if chosen.dtype != bool or chosen.shape not in [tuple(shape), (count, *shape)]:
            raise InputError(
                f"mask of {name!r} is {chosen.dtype}{list(chosen.shape)}; it must be bool{list(shape)} or "
                f"bool{[count, *shape]}"
            )
        arrays[name], masks[name] = (np.broadcast_to(values, (count, *shape)) for values in (array, chosen))
    return arrays, masks


def check_tokenizer(run: "Run", tokenizer: "Run") -> None:
    """Raises InputError unless a tokeniser has the codebooks whose codes a prior was trained on."""
    if not hasattr(run.model, "sample"):
        raise InputError(f"{run.workdir} is a run of {type(run.model).__name__}, which is not a prior")
    source, codebooks = f"{tokenizer.workdir} at step {tokenizer.step}", tokenizer.codebooks
    remedy = f"pass the run, and the step, whose codes {run.workdir} was trained on"
    for level, vectors in run.model.level_codewords(run.variables).items():
        if level.name not in codebooks:
            raise InputError(f"{source} has no codebook {level.name!r}, only {', '.join(codebooks)}; {remedy}")
        other = codebooks[level.name].reshape(-1, codebooks[level.name].shape[-1])
        if len(other) != level.size or (level.dim and not np.array_equal(other, vectors)):
            raise InputError(f"{source} has another codebook {level.name!r} than the prior's codes; {remedy}")
