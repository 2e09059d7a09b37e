"""From a picture to the pixels that a picture encoder reads: uint8 on the host, floats on the device.

A checkpoint keeps its :class:`PictureSettings`. The defaults are ours; :meth:`PictureSettings.from_processor` reads the
preprocessor_config.json of an encoder's folder. A model that is fed with other pixels than it was trained on is wrong
without an error. A picture becomes a square by one of these ways:

=============== ============================================================ ==========================================
``crop``        short side to ``resize``, centre crop to ``size``; the long  whole pictures, ours
                side is rounded to the nearest integer
``processor``   as ``crop``, the long side rounded down, as transformers'    whole pictures of ResNet and CLIP folders
                image processors do
``squash``      both sides to ``resize``, centre crop to ``size``            whole pictures of ViT and Swin folders
``torchvision`` as ``processor``, the corner of the crop rounded to the      whole pictures of the released NER code,
                nearest even number; a region is cut out first, at rounded   regions of both
                pixels
``area_bgr``    squashed to ``size``² as OpenCV's INTER_AREA does, channels  whole pictures of the released RE code
                blue, green, red, never normalised
``stretch``     the region's crop, resized to ``size``²                      regions, ours
=============== ============================================================ ==========================================

Pixels travel as bytes and are normalised where they are used: (x · rescale − mean) / std.

``reducing_gap`` trades exactness for speed, in Pillow's terms: a part of a picture may be reduced by whole factors
before it is resized, as long as it keeps ``reducing_gap`` times the pixels of the result in each direction. A JPEG is
reduced while it is decoded, by 1/2, 1/4 or 1/8, as far as the whole picture and each of its regions allow; what
remains is averaged over blocks. With 2, a part that is less than four times as large as the result is read exactly.
``benchmarks/input_pipeline.py`` counts the values that come within one level of the exact ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from tmrjax.pictures.area import area_resized
from tmrjax.pictures.decode import Decoded, Shrinking, whole
from tmrjax.records.schema import Box

# What torchvision's and Hugging Face's ResNets were trained with, and OpenAI's CLIP.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

WHOLE = ("crop", "processor", "squash", "torchvision", "area_bgr")
REGIONS = ("stretch", "torchvision")
MISSING = ("mask", "zeros")
Part = tuple[float, float, float, float]  # left, upper, right and lower edge in pixels
# In the order of Pillow's codes, which preprocessor_config.json writes.
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

# What a processor of transformers does where its file is silent. ``side``: what a bare number as ``size`` is.
_HALF = (0.5, 0.5, 0.5)
_PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViT": {"size": 224, "side": "square", "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "ConvNext": {"size": 384, "side": "shortest", "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "CLIP": {
        "size": 224, "side": "shortest", "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD,
        "do_center_crop": True, "crop_size": 224,
    },
}  # fmt: skip
_CONVNEXT_CROP, _CONVNEXT_SQUASHED = 224 / 256, 384  # ConvNext's crop_pct, and the size from which it does not crop

_MOST_PROCESSED = 32  # A picture that is so many times as long as it is wide is not resized as a whole.


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """How pictures become pixels: part of every checkpoint. A checkpoint without one of these keys has the default.

    Attributes:
        size: side of the square that the encoder reads.
        resize: the short side (``squash``: both sides) before the centre crop.
        whole: one of WHOLE, see the module.
        regions: one of REGIONS.
        missing: ``mask``: a picture or region that a post lacks has no influence. ``zeros``: zeros take its place and
            count as a picture, as in the released code.
        generated_regions: False treats every region of a generated picture as missing. The released NER code fails to
            crop them and takes zeros for all of them.
        resample: one of RESAMPLE, the filter of every way but ``area_bgr``; antialiased as Pillow's are.
        rescale: what a byte is multiplied with.
        mean, std: of the three channels, after ``rescale``.
        reducing_gap: 0 decodes every picture whole and resizes it in one go; at least 1 is faster, see the module.

    Raises:
        ValueError: an unknown way, ``resize`` below ``size``, numbers that cannot normalise three channels, or a
            ``reducing_gap`` that the way does not have.
    """

    size: int = 224
    resize: int = 256
    whole: str = "crop"
    regions: str = "stretch"
    missing: str = "mask"
    generated_regions: bool = True
    resample: str = "bilinear"
    rescale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGE_MEAN
    std: tuple[float, float, float] = IMAGE_STD
    reducing_gap: float = 0.0

    def __post_init__(self):
        for name in ("mean", "std"):  # JSON has lists; the settings are hashed
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        ways = (("whole", WHOLE), ("regions", REGIONS), ("missing", MISSING), ("resample", RESAMPLE))
        for name, known in ways:
            if getattr(self, name) not in known:
                raise ValueError(f"pictures.{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.resize < self.size:
            raise ValueError(
                f"pictures are resized to {self.resize} and cropped to {self.size}: the first must not be smaller"
            )
        if self.reducing_gap and not 1 <= self.reducing_gap < math.inf:
            raise ValueError(f"pictures.reducing_gap is {self.reducing_gap}; expected 0 (exact), or at least 1")
        if self.reducing_gap and self.whole == "area_bgr":
            raise ValueError("pictures.reducing_gap is for filters of Pillow; whole='area_bgr' is exact: set it to 0")
        for name, least in (("mean", -math.inf), ("std", 0), ("rescale", 0)):
            value = getattr(self, name)
            numbers, count = (value, 3) if name in ("mean", "std") else ((value,), 1)
            sound = all(isinstance(number, int | float) and least < number < math.inf for number in numbers)
            if len(numbers) != count or not sound:
                kind = "three finite numbers" if count == 3 else "a finite number"
                raise ValueError(f"pictures.{name} is {value}; expected {kind}{' above 0' if least == 0 else ''}")

    @classmethod
    def from_processor(cls, mapping: Mapping[str, Any] | None, **changes: Any) -> Self:
        """The settings that the preprocessor_config.json of an encoder's folder describes.

        Args:
            mapping: the contents of the file; None for a folder without one (timm's): the defaults.
            changes: fields that the file does not know (``missing``, ...).

        Raises:
            ValueError: a processor, a key or a size that is not built here, with what is.
        """
        return cls(**({} if mapping is None else _processor_fields(mapping)), **changes)

    @property
    def as_bytes(self) -> bool:
        """Whether pictures travel as uint8, for :meth:`normalise` on the device.

        Not with ``zeros``: what is missing is zero after the normalisation there, which no byte says. Such pictures
        are finished on the host.
        """
        return self.missing == "mask"

    @property
    def of_pixels(self) -> dict[str, Any]:
        """The fields that the pixels of a picture and of a region depend on, as JSON: the identity of a cache."""
        fields = dataclasses.asdict(self)
        unread = ("missing", "generated_regions", *(() if self.reducing_gap else ("reducing_gap",)))
        return {name: value for name, value in fields.items() if name not in unread}

    def shrinking(self, boxes: Sequence[Box | None]) -> Shrinking | None:
        """How much smaller a picture may be decoded of which these boxes are read, None for the whole picture.

        None where it must not be smaller.
        """
        if not self.reducing_gap:
            return None

        def factor(size: tuple[int, int]) -> int:
            parts = [self._whole_part(size) if box is None else self._region_part(size, box) for box in boxes]
            least = min((min(part[2] - part[0], part[3] - part[1]) for part in parts), default=0) / self.size
            return next((f for f in (8, 4, 2) if least >= f * self.reducing_gap), 1)

        return factor

    def whole_pixels(self, picture: Image.Image | Decoded) -> np.ndarray:
        """An RGB picture as uint8 [size, size, 3]."""
        picture = picture if isinstance(picture, Decoded) else whole(picture)
        part = self._whole_part(picture.size)
        if self._reduces(picture, part):
            return self._reduced(picture, part)
        if self.whole == "area_bgr":
            return area_resized(np.asarray(picture.pixels)[..., ::-1], self.size)
        return square_of(picture.pixels, self.size, self.resize, self.whole, self.resample)

    def seen(self, width: int, height: int) -> Box:
        """The part of a whole picture of this size that :meth:`whole_pixels` shows, in fractions of both sides."""
        left, top, right, bottom = self._whole_part((width, height))
        return left / width, top / height, right / width, bottom / height

    def region_pixels(self, picture: Image.Image | Decoded, box: Box) -> np.ndarray:
        """The part of an RGB picture inside ``box`` (fractions of width and height) as uint8 [size, size, 3]."""
        picture = picture if isinstance(picture, Decoded) else whole(picture)
        part = self._region_part(picture.size, box)
        if self._reduces(picture, part):
            return self._reduced(picture, part)
        if self.regions == "torchvision":
            return square_of(cropped(picture.pixels, box), self.size, self.resize, "torchvision", self.resample)
        return stretched(picture.pixels, box, self.size, self.resample)

    def _whole_part(self, size: tuple[int, int]) -> Part:
        if self.whole == "area_bgr":
            return 0, 0, *size
        return square_part(size, self.size, self.resize, self.whole)

    def _region_part(self, size: tuple[int, int], box: Box) -> Part:
        if self.regions == "stretch":
            return touched(size, box)
        left, top, right, bottom = rounded(size, box)
        inside = square_part((right - left, bottom - top), self.size, self.resize, "torchvision")
        return left + inside[0], top + inside[1], left + inside[2], top + inside[3]

    def _reduces(self, picture: Decoded, part: Part) -> bool:
        """Whether a part is read otherwise than exactly: of a smaller decode, or averaged over blocks first."""
        longer = max(part[2] - part[0], part[3] - part[1]) / self.size
        return picture.factor > 1 or (self.reducing_gap > 0 and longer >= 2 * self.reducing_gap)

    def _reduced(self, picture: Decoded, part: Part) -> np.ndarray:
        """A part in pixels of the whole picture as uint8 [size, size, 3]."""
        size, box = (self.size, self.size), picture.box(part)
        return np.asarray(picture.pixels.resize(size, _filter(self.resample), box, self.reducing_gap or None))

    def normalise(self, pixels: np.ndarray | jax.Array, *, whole: bool = False) -> np.ndarray | jax.Array:
        """Bytes as float32: (x · rescale − mean) / std per channel. Floats are normalised already and pass through.

        A byte is looked up among the 256 values that its channel can have, which NumPy computes. It costs no more than
        the arithmetic (7.7 ms for 32 pictures of 224² on one CPU thread) and gives the same bits everywhere: XLA
        rounds otherwise than NumPy, because it replaces a division by a constant with a multiplication.

        Args:
            pixels: [..., 3] of any shape, uint8 or floating.
            whole: whether they are whole pictures, which ``area_bgr`` leaves as they are, 0 to 255.

        Raises:
            ValueError: integers other than uint8.
        """
        if jnp.issubdtype(pixels.dtype, jnp.floating):
            return pixels
        if pixels.dtype != np.uint8:
            raise ValueError(f"pixels are {pixels.dtype}; expected uint8, or floats that are normalised already")
        if whole and self.whole == "area_bgr":
            return pixels.astype(np.float32)
        divisor, mean, std = (np.asarray(value, np.float32) for value in (1 / self.rescale, self.mean, self.std))
        values = ((np.arange(256, dtype=np.float32)[:, None] / divisor - mean) / std).ravel()
        place = pixels.astype(np.int32) * 3 + np.arange(3, dtype=np.int32)
        if isinstance(pixels, np.ndarray):
            return values[place]
        return jnp.asarray(values).at[place].get(mode="promise_in_bounds")


def _processor_fields(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of PictureSettings from a preprocessor_config.json."""
    name = str(mapping.get("image_processor_type") or mapping.get("feature_extractor_type") or "")
    kind = name.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    if not name:  # the oldest files do not say
        kind = "ConvNext" if "crop_pct" in mapping else "CLIP" if mapping.get("do_center_crop") else "ViT"
    if kind not in _PROCESSORS:
        raise ValueError(
            f"preprocessor_config.json: the image processor {name!r} is not built here; those of "
            f"{', '.join(_PROCESSORS)} are (Swin and many others use ViT's, ResNet ConvNext's)"
        )
    found = {**_PROCESSORS[kind], **{key: value for key, value in mapping.items() if value is not None}}
    for key in ("do_pad", "do_flip_channel_order", "rescale_offset"):
        if found.get(key):
            raise ValueError(f"preprocessor_config.json: {key} {found[key]!r} is not supported")
    if not found.get("do_resize", True):
        raise ValueError("preprocessor_config.json: do_resize false is not supported: an encoder reads one size")
    if found["resample"] not in range(len(RESAMPLE)):
        raise ValueError(f"preprocessor_config.json: resample {found['resample']!r} is none of Pillow's codes 0 to 5")

    resize, whole = _resized(found["size"], found["side"])
    size = resize
    if kind == "ConvNext":
        if whole != "processor":
            raise ValueError(
                f"preprocessor_config.json: size {found['size']!r} is no shortest edge, as ConvNext has it"
            )
        if size < _CONVNEXT_SQUASHED:
            resize = int(size / found.get("crop_pct", _CONVNEXT_CROP))
        else:
            whole = "squash"
    elif found.get("do_center_crop"):
        size, _ = _resized(found.get("crop_size", found["size"]), "square")
    elif whole == "processor":
        raise ValueError(
            f"preprocessor_config.json: size {found['size']!r} without a centre crop leaves pictures of all shapes; "
            "an encoder here reads squares"
        )
    fields = {"size": size, "resize": resize, "whole": whole, "resample": RESAMPLE[found["resample"]]}
    fields["rescale"] = found.get("rescale_factor", 1 / 255) if found.get("do_rescale", True) else 1.0
    normalised = found.get("do_normalize", True)
    for name, without in (("mean", 0.0), ("std", 1.0)):
        value = found[f"image_{name}"] if normalised else without
        fields[name] = [value] * 3 if isinstance(value, int | float) else value
    return fields


def _resized(size: Any, side: str) -> tuple[int, str]:
    """A number of pixels and a way of WHOLE from the forms that ``size`` has had; ``side`` for a bare number."""
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        size, side = size["shortest_edge"], "shortest"
    elif isinstance(size, Mapping) and set(size) == {"height", "width"} and size["height"] == size["width"]:
        size, side = size["height"], "square"
    elif isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size, side = size[0], "square"
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(
            f"preprocessor_config.json: size {size!r} is not supported; expected a number of pixels, "
            '{"shortest_edge": number}, or {"height": number, "width": the same number}'
        )
    return size, "processor" if side == "shortest" else "squash"


def square_part(size: tuple[int, int], side: int, resize: int, way: str) -> Part:
    """What of a picture of this width and height the way reads, in its pixels; ``way`` as for :func:`square_of`."""
    width, height = _resized_sides(size, resize, way)
    left, top = _corner(width, height, side, way)
    across, down = size[0] / width, size[1] / height
    return left * across, top * down, (left + side) * across, (top + side) * down


def _resized_sides(size: tuple[int, int], resize: int, way: str) -> tuple[int, int]:
    shorter = min(size)
    if way in ("squash", "area_bgr"):
        return resize, resize
    if way == "crop":
        width, height = (max(resize, round(side * (resize / shorter))) for side in size)
    else:
        width, height = (int(resize * side / shorter) for side in size)
    return width, height


def _corner(width: int, height: int, size: int, way: str) -> tuple[int, int]:
    if way == "torchvision":
        return round((width - size) / 2), round((height - size) / 2)
    return (width - size) // 2, (height - size) // 2


def square_of(
    picture: Image.Image, size: int, resize: int, way: str = "crop", resample: str = "bilinear"
) -> np.ndarray:
    """An RGB picture resized, its centre cropped; ``way``: one of WHOLE but ``area_bgr``, see the module.

    Returns uint8 [size, size, 3]. Raises ValueError where ``resize`` is below ``size``.
    """
    if resize < size:
        raise ValueError(f"pictures are resized to {resize} and cropped to {size}: the first must not be smaller")
    width, height = _resized_sides(picture.size, resize, way)
    if way in ("processor", "squash") and max(width, height) <= _MOST_PROCESSED * resize:
        # The very pixels of transformers: Pillow rounds after each of two passes, whose order it chooses by the sizes.
        left, top = _corner(width, height, size, way)
        resized = picture.resize((width, height), _filter(resample))
        return np.asarray(resized.crop((left, top, left + size, top + size)))
    # The crop in coordinates of the source: what resizing the whole picture and cropping it then gives up to rounding,
    # but a picture of 1 x 20,000 would take gigabytes on that way.
    box = square_part(picture.size, size, resize, way)
    return np.asarray(picture.resize((size, size), _filter(resample), box=box))


def stretched(picture: Image.Image, box: Box, size: int, resample: str = "bilinear") -> np.ndarray:
    """The part of a picture inside ``box`` (fractions of width and height), resized to ``size`` × ``size``.

    Returns uint8 [size, size, 3]; a box that is thinner than a pixel gets the pixels that it touches.
    """
    return np.asarray(picture.crop(touched(picture.size, box)).resize((size, size), _filter(resample)))


def touched(size: tuple[int, int], box: Box) -> Part:
    """The pixels of a picture of this width and height that ``box`` (fractions) touches, one at least."""
    width, height = size
    left, top = math.floor(box[0] * width), math.floor(box[1] * height)
    right, bottom = math.ceil(box[2] * width), math.ceil(box[3] * height)
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def rounded(size: tuple[int, int], box: Box) -> Part:
    """As :func:`touched`, at rounded pixels as ``Image.crop`` takes them."""
    width, height = size
    left, right = (round(fraction * width) for fraction in box[::2])
    top, bottom = (round(fraction * height) for fraction in box[1::2])
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def cropped(picture: Image.Image, box: Box) -> Image.Image:
    """The part of a picture inside ``box``, at rounded pixels, one pixel at least."""
    return picture.crop(rounded(picture.size, box))


def _filter(resample: str) -> Image.Resampling:
    return Image.Resampling(RESAMPLE.index(resample))
