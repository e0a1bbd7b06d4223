"""Defines `Run`, a trained model to encode and decode with, share and export. `kvae.load` opens one."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kvae import data
from kvae.core.errors import InputError
from kvae.core.files import target_path
from kvae.data.listing import read_images
from kvae.models.codebook_views import by_codebook
from kvae.models.model import Model
from kvae.runs import codes, export, generation, share
from kvae.training.workdir.journal import read_metrics


class Run:
    """A trained model with its variables. Images are uint8; arguments and results are NumPy arrays.

    `kvae.load`, `kvae.from_pretrained`, `kvae.from_torch` and `kvae.train` return runs.

    Example:
      After `python -m kvae.main --config=configs/photos_vqvae.py:smoke --workdir=runs/smoke`:

      >>> import kvae, numpy as np
      >>> run = kvae.load("runs/smoke")
      >>> images = np.zeros((2, 32, 32, 3), np.uint8)
      >>> codes = run.encode(images)
      >>> codes["codebook"].shape, codes["codebook"].dtype
      ((2, 8, 8), dtype('int32'))
      >>> decoded = run.decode(codes)
      >>> decoded.shape, decoded.dtype
      ((2, 32, 32, 3), dtype('uint8'))
      >>> codewords = run.codebooks["codebook"]
      >>> codewords.ndim  # the two axes of the grid, then the codeword
      3

    Attributes:
      workdir: The run's folder, or the file that its weights came from.
      config: The complete config as nested dicts.
      step: The step of the checkpoint.
      model: The Flax module.
      variables: The variables of `model.apply`, as NumPy arrays.
      replica: Index of the replica, if several seeds were trained at once.
    """

    def __init__(
        self, workdir: str, config: dict[str, Any], step: int, model: Model, variables: dict[str, Any], replica: int = 0
    ):
        self.workdir, self.config, self.step, self.model, self.variables = workdir, config, step, model, variables
        self.replica = replica

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, one dict each: step, train/loss, valid/loss and so on."""
        return read_metrics(self.workdir, self.config["replicas"])

    @property
    def codebooks(self) -> dict[str, np.ndarray]:
        """Returns the codewords of each codebook, arranged on its grid.

        Returns:
          A dict by codebook: float32 [*grid_shape, d], or [K, d] if there is no grid. A quantiser with q codebooks has
          q entries, `<name>_0`, `<name>_1` and so on.

        Raises:
          InputError: The model has no codebooks.
        """
        self._check_method("decode")
        codebooks = {}
        for name, layer in self.model.bind(self.variables).quantizers.items():
            shape = layer.grid.shape if layer.grid is not None else (layer.codebook_size,)
            parts = by_codebook(name, layer.n_codebooks, np.asarray(layer.codewords()))
            codebooks |= {part: codewords.reshape(*shape, -1) for part, codewords in parts.items()}
        return codebooks

    @property
    def image_spec(self) -> data.ImageSpec:
        """Returns the size and crop of the images of the run's data set.

        Raises:
          InputError: The data set of the run has no size.
        """
        return data.image_spec(self.config["dataset"])

    def read_images(self, source: Any, *, size: int | None = None, crop: bool | None = None) -> np.ndarray:
        """Reads images and resizes them as in training.

        All images are held in memory; `python -m kvae.tokenize` processes folders of any size.

        Args:
          source: A folder, whose images are read in the order of their paths; a file; a Pillow image; or a sequence of
            files and Pillow images.
          size: Edge in pixels. The data set's by default.
          crop: True keeps the aspect ratio and crops the centre. The data set's value by default.

        Returns:
          uint8 [n, size, size, 3].

        Raises:
          InputError: There are no images, one cannot be read, or no size is given and the data set has none.
        """
        return read_images(source, data.image_spec(self.config["dataset"], size, crop))

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Encodes images.

        Args:
          images: uint8 [b, h, w, 3]. Height and width must be multiples of the model's stride.

        Returns:
          A dict by codebook: int32 [b, h', w'], or [b, h', w', q] for a quantiser with q codebooks.

        Raises:
          InputError: The images have the wrong type or shape.
        """
        return self.apply("encode", codes.validate_images(images))

    def decode(self, codes_by_codebook: Mapping[str, np.ndarray]) -> np.ndarray:
        """Decodes codes.

        Args:
          codes_by_codebook: Integers of the shapes that `encode` returns.

        Returns:
          uint8 [b, h, w, 3].

        Raises:
          InputError: A codebook is missing, an array has the wrong type or shape, or a code is outside 0 to K - 1.
        """
        self._check_method("decode")
        return self.apply("decode", codes.validate_codes(self.model, codes_by_codebook))

    def reconstruct(self, images: np.ndarray) -> np.ndarray:
        """Encodes and decodes images uint8 [b, h, w, 3]; returns the same shape and type."""
        return self.apply("reconstruct", codes.validate_images(images))

    def codes_near(self, code: int, radius: float = 1.5, codebook: str | None = None) -> np.ndarray:
        """Returns the codes whose distance to a code on the grid is less than `radius`.

        Args:
          code: From 0 to K - 1.
          radius: In nodes of the grid; 1.5 includes the eight neighbours on a plane.
          codebook: Name of the codebook. Required if the model has several.

        Returns:
          int32 [n], nearest first, starting with `code` itself.

        Raises:
          InputError: The code or the codebook does not exist, or the codebook has no grid.
        """
        self._check_method("decode")
        return codes.codes_near(self.model, code, radius, codebook)

    def interpolate(
        self, codes_a: Mapping[str, np.ndarray], codes_b: Mapping[str, np.ndarray], steps: int
    ) -> list[dict[str, np.ndarray]]:
        """Interpolates between codes along the grid; each position follows its own shortest path.

        Nearby codes of a map decode to similar patches: `[run.decode(codes) for codes in run.interpolate(a, b, 8)]`.

        Args:
          codes_a: Codes by codebook, as `encode` returns them.
          codes_b: Codes by codebook, of the same shapes.
          steps: Length of the result, both ends included; at least 2.

        Returns:
          A list of codes by codebook, from `codes_a` to `codes_b`.

        Raises:
          InputError: The codes do not fit the model or each other, or a codebook has no grid.
        """
        self._check_method("decode")
        return codes.interpolate(self.model, codes_a, codes_b, steps)

    def winners(self, images: np.ndarray) -> np.ndarray:
        """Returns the winning neuron of each image uint8 [b, h, w, 3], int32 [b], row by row (URL-SOM only)."""
        return self.apply("winners", codes.validate_images(images))

    def map(self, images: np.ndarray) -> np.ndarray:
        """Returns the probability of each neuron, float32 [b, *grid_shape], for uint8 [b, h, w, 3] (URL-SOM only)."""
        return self.apply("map", codes.validate_images(images))

    def sample_codes(self, count: int, *, key: jax.Array, **options: Any) -> dict[str, np.ndarray]:
        """Samples codes from a prior; `kvae.runs.generation.sample_codes` documents the options and the result.

        Args:
          count: Number of images.
          key: A JAX random key.
          **options: label, temperature, top_k, top_p; codes and mask to sample only a part of given codes.

        Raises:
          InputError: The model is not a prior, or an option is invalid.
        """
        return generation.sample_codes(self, generation.split_key(key, range(count)), **options)

    def sample(self, count: int, *, tokenizer: "Run", key: jax.Array, **options: Any) -> np.ndarray:
        """Samples images uint8 [count, h, w, 3] from a prior, see `sample_codes`; `tokenizer` decodes the codes.

        Raises:
          InputError: As for `sample_codes`; or the prior was trained on the codes of another tokeniser.
        """
        generation.check_tokenizer(self, tokenizer)
        return tokenizer.decode(self.sample_codes(count, key=key, **options))

    def save_pretrained(self, folder: os.PathLike | str, *, images: bool = False, license: str | None = None) -> None:
        """Writes the run for sharing: model.safetensors, config.json, metrics.jsonl, figures, and a card, README.md.

        `kvae.from_pretrained(folder)` opens it, with bit-identical weights. Local paths of the data set are removed
        from the config.

        Args:
          folder: New, empty, or written by an earlier call.
          images: True also shares the figures that show images of the data set, such as reconstructions. By default
            only figures of curves and maps are shared, because the images may be private.
          license: A licence identifier of the Hugging Face Hub for the card, such as "apache-2.0".

        Raises:
          InputError: The folder holds other files or cannot be written.
        """
        name = target_path("the folder", folder).resolve().name
        share.save_shared(self, folder, name, images=images, license=license)

    def push_to_hub(self, name: str, *, images: bool = False, license: str | None = None, **options: Any) -> str:
        """Uploads the files of `save_pretrained` to a repository on the Hugging Face Hub.

        Needs `pip install -e '.[hub]'` and a token, which `hf auth login` stores.

        Args:
          name: The repository, "user/name". It is created if it does not exist.
          images: See `save_pretrained`. By default no figure that shows images of the data set is uploaded.
          license: See `save_pretrained`.
          **options: Passed to `huggingface_hub.ModelHubMixin.push_to_hub`, such as private=True, branch and token.

        Returns:
          The URL of the commit.

        Raises:
          InputError: huggingface_hub is not installed, or the Hub cannot be reached or rejects the upload.
        """
        from kvae.runs import hub

        return hub.push(self, name, images=images, license=license, **options)

    def export(self, folder: os.PathLike | str, batch: str | int = "b", size: int | None = None) -> None:
        """Writes the encoder and decoder as JAX programs that need neither kvae nor Flax; see `kvae.export`.

        Args:
          folder: New, empty, or written by an earlier call.
          batch: A letter for any batch size, or one fixed size.
          size: Edge of the images in pixels. The data set's by default.

        Raises:
          InputError: The model does not encode and decode, or the folder holds other files or cannot be written.
        """
        self._check_method("encode")
        self._check_method("decode")
        export.export_run(self, folder, batch, self.image_spec.size if size is None else size)

    def apply(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the model, compiled with `jax.jit`.

        Args:
          method: One of `model.methods`.
          *arguments: Arrays.

        Returns:
          The result of the method, as NumPy arrays.

        Raises:
          InputError: The model does not have the method, or an argument has the wrong shape.
        """
        self._check_method(method)
        return jax.device_get(_compiled(self.model, method)(self.variables, *arguments))

    def _check_method(self, method: str) -> None:
        if method not in self.model.methods:
            model, methods = type(self.model).__name__, ", ".join(self.model.methods) or "none"
            raise InputError(f"{self.workdir} is a run of {model}, which has no method {method!r}; it has {methods}")

    def __repr__(self) -> str:
        return f"Run({self.workdir!r}, step={self.step}, model={type(self.model).__name__})"


@functools.lru_cache
def _compiled(model: Model, method: str) -> Callable:
    """Returns a method of a model as a compiled function of variables and arguments."""
    return jax.jit(functools.partial(model.apply, method=method))
