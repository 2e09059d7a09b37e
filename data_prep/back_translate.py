"""Back-translation (paper section 3.3): a picture for each post, drawn from its text by Stable Diffusion.

    python data_prep/back_translate.py DATASET --model=DIR [--scheduler=... --steps=50 --guidance=7.5 --dtype=bfloat16]

DIR is a Stable Diffusion folder, v1.x or v2.x, in Flax or safetensors format (`data_prep/diffusion/folder.py`); nothing
is fetched. The picture of a post depends on its prompt, its id, --seed and the options, never on batch, shard or number
of devices. It lies in `generated/` under a name of its own for each prompt and set of options, with all of them in the
file (PNG text or JPEG comment, as JSON). The record gets prompt, seed, and model with scheduler, steps and guidance.

* Where a picture replaces another, that one's regions and divergence scores go with it, counted; its file stays.
* The model reads 77 word pieces of a prompt; longer ones are warned of and counted. The whole prompt is stored.
* A picture that the folder's safety checker flags is not kept: its post has no generated picture, and is counted.
  Where the model computes NaN the post has failed. A black square never stands in for a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.diffusion.folder import DTYPES, SCHEDULERS, open_folder
from data_prep.diffusion.sampler import Drawing, Generator, Picture, picture_size, seed_of
from data_prep.diffusion.weights import ExtraMissingError, load_model
from data_prep.stages.command import add_arguments, command, selection_of
from data_prep.stages.frame import JOURNALS, Outcome, Selection, Stage, run_stage
from tmrjax import __version__
from tmrjax.files import DataError, parse_json, read_bytes, write_atomic
from tmrjax.records import Dataset, Generated, Record

logger = logging.getLogger(__name__)

NAME = "back_translate"
FOLDER = "generated"
HASHES = "model.json"  # beside the journals: hashes of the model's files, so that they are computed once
STRIPPED = ("urls", "users", "hashes")
_URL = re.compile(r"(?<!\S)(?:https?(?: : //\S+(?: \. \S+)?|(?: [.…]+)+|[:/.…]\S*)?|www\.\S+)(?!\S)", re.IGNORECASE)
_USER = re.compile(r"(?<!\S)@(?: ?\w+)?(?!\S)")
_HASH = re.compile(r"(?<!\S)#+ ?(?=\w)")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to draw with; the fields are the command's flags."""

    model: Path
    drawing: Drawing = dataclasses.field(default_factory=Drawing)
    scheduler: str | None = None  # default: the folder's own
    dtype: str = "float32"
    seed: int = 0
    strip: tuple[str, ...] = ()
    format: str = "png"  # or "jpeg"
    safety_checker: bool = True  # False: draw without, although the folder has one
    only_missing: bool = False  # leave posts alone that have a picture from elsewhere
    devices: int | None = None

    def __post_init__(self):
        for name, value, known in (
            ("dtype", (self.dtype,), DTYPES),
            ("strip", self.strip, STRIPPED),
            ("format", (self.format,), ("png", "jpeg")),
        ):
            if not set(value) <= set(known):
                raise ValueError(f"{name} is {value}; expected out of {known}")


def prompt_of(tokens: Sequence[str], strip: Sequence[str] = ()) -> str:
    """The tokens joined by blanks, without what `strip` names; the whole text where nothing would be left."""
    return stripped_text(tokens, strip) or " ".join(tokens)


def stripped_text(tokens: Sequence[str], strip: Sequence[str]) -> str:
    """The tokens joined by blanks, without what `strip` names; may be empty.

    "urls" go, also in the pieces that tokenisers make of them; "users" go: @name, and a lone @ with the word after it;
    of "hashes" only the sign goes, its word stays.
    """
    text = " ".join(tokens)
    for name, pattern in (("urls", _URL), ("users", _USER), ("hashes", _HASH)):
        if name in strip:
            text = pattern.sub("", text)
    return " ".join(text.split()) if strip else text


def back_translate(
    root: str | os.PathLike,
    options: Options,
    selection: Selection | None = None,
    *,
    compiler_options: dict[str, Any] | None = None,
) -> Dataset:
    """Draws what is missing, resumably (:mod:`data_prep.stages.frame`), and returns the data set with the new pictures.

    `compiler_options` go to XLA. Raises :class:`DataError` for faulty data or models, ValueError for options out of
    range, :class:`ExtraMissingError` where diffusers with Flax is not installed.
    """
    root = Path(root)
    return run_stage(root, _Drawer(root, options, compiler_options).stage(), selection)


class _Drawer:
    """One run: the options, the model (loaded with the first picture), what each record gets."""

    def __init__(self, root: Path, options: Options, compiler_options: dict[str, Any] | None):
        self.root, self.options, self.compiler_options = root, options, compiler_options
        self.folder = open_folder(
            options.model,
            scheduler=options.scheduler,
            safety_checker=options.safety_checker,
            known_files=_known_files(root),
        )
        drawing = options.drawing
        height, width = picture_size(self.folder, drawing)
        self.settings = {
            "scheduler": self.folder.scheduler,
            "steps": drawing.steps,
            "guidance": drawing.guidance,
            "height": height,
            "width": width,
            "negative_prompt": drawing.negative_prompt,
            "dtype": options.dtype,
            "format": options.format,
            "safety_checker": self.folder.safety_checker,
        }
        self.model = f"sha256:{self.folder.sha256}"
        steps = "1 step" if drawing.steps == 1 else f"{drawing.steps} steps"
        self.described = f"{self.model} {self.folder.scheduler} {steps} guidance {drawing.guidance:g}"

    def stage(self) -> Stage:
        """The stage for :func:`run_stage`."""
        mesh = self.options.devices or _number_of_devices()
        return Stage(
            name=NAME,
            tool="data_prep/back_translate.py",
            options=self.settings | {"strip": sorted(self.options.strip)},
            model=self.model,
            seed=self.options.seed,
            versions=self._versions(),
            work=self.work,
            apply=functools.partial(_apply, described=self.described),
            inputs=lambda record: prompt_of(record.tokens, self.options.strip),
            concerns=self.concerns,
            batch_size=self.options.drawing.batch_size * mesh,
        )

    def concerns(self, record: Record) -> bool:
        """Every post, or with `only_missing` those without a picture from elsewhere."""
        drawn = record.generated
        return drawn is None or drawn.model == self.described or not self.options.only_missing

    @functools.cached_property
    def generator(self) -> Generator:
        """The model, loaded and ready to be compiled: only where there is something to draw."""
        _remember_files(self.root, self.folder.files)
        model = load_model(self.folder, dtype=self.options.dtype)
        return Generator(
            model, self.options.drawing, devices=self.options.devices, compiler_options=self.compiler_options
        )

    def work(self, records: Sequence[Record]) -> list[Outcome | DataError]:
        """Draws a batch and writes its files."""
        prompts = [prompt_of(record.tokens, self.options.strip) for record in records]
        seeds = [seed_of(record.id, self.options.seed) for record in records]
        pictures = self.generator.draw(prompts, seeds)
        (self.root / FOLDER).mkdir(exist_ok=True)
        with ThreadPoolExecutor() as pool:  # zlib and the disk work outside Python's lock
            return list(pool.map(self._keep, records, prompts, seeds, pictures))

    def _keep(self, record: Record, prompt: str, seed: int, picture: Picture) -> Outcome | DataError:
        if not picture.finite:
            return DataError(
                f"{self.root}: {record.id}",
                f"NaN or infinity in the picture for {prompt!r} (seed {seed})",
                "finite pixels",
                f"The model cannot draw it in {self.options.dtype}; try --dtype=float32, or check the weights.",
            )
        limit = self.generator.max_pieces
        counts = {}
        if picture.pieces > limit:
            counts[f"prompts longer than {limit} pieces (their end was not read)"] = 1
            logger.warning("%s: the prompt has %d pieces, the model reads %d", record.id, picture.pieces, limit)
        if not stripped_text(record.tokens, self.options.strip):
            counts["prompts kept whole (nothing would be left of them)"] = 1
        image = None
        if picture.flagged:
            counts["flagged by the safety checker (no picture kept)"] = 1
            logger.warning("%s: flagged by the safety checker; no picture is kept", record.id)
        else:
            image = f"{FOLDER}/{self._file_name(record.id, prompt)}"
            known = {"prompt": prompt, "seed": seed, "model": self.model, **self.settings}
            data = encode_picture(picture, {**known, "software": f"tmrjax {__version__}"}, self.options.format)
            write_atomic(self.root / image, data)
        old = record.generated
        if old is not None and old.image != image:
            counts["pictures replaced"] = 1
            counts["regions cleared with them"] = len(old.regions)
            counts["divergence scores cleared with them"] = int(record.generated_scores is not None)
        return Outcome({"image": image, "prompt": prompt, "seed": seed, "pieces": picture.pieces}, counts)

    def _file_name(self, identifier: str, prompt: str) -> str:
        """The id, or its hash where it is no file name, and 8 digits that differ with everything the picture is of."""
        known = json.dumps([prompt, identifier, self.options.seed, self.model, self.settings], sort_keys=True)
        digest = hashlib.sha256(known.encode()).hexdigest()[:8]
        plain = re.fullmatch(r"\w[\w.-]{0,99}", identifier, re.ASCII)
        stem = identifier if plain else hashlib.sha256(identifier.encode()).hexdigest()[:16]
        return f"{stem}-{digest}.{'png' if self.options.format == 'png' else 'jpg'}"

    def _versions(self) -> dict[str, str]:
        versions = {"model_folder": self.folder.path.resolve().name}
        for name in ("diffusers", "transformers", "tokenizers", "jax", "jaxlib", "flax"):
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = "not installed"
        return versions


def _apply(record: Record, value: dict[str, Any], *, described: str) -> Record:
    if value["image"] is None:
        return dataclasses.replace(record, generated=None, generated_scores=None)
    known = {"image": value["image"], "prompt": value["prompt"], "seed": value["seed"], "model": described}
    old = record.generated
    if old is not None and old.image == value["image"]:  # folded before: what later stages added stays
        return dataclasses.replace(record, generated=dataclasses.replace(old, **known))
    return dataclasses.replace(record, generated=Generated(**known), generated_scores=None)


def _number_of_devices() -> int:
    import jax

    return jax.local_device_count()


# ------------------------------------------------------------------ files


def encode_picture(picture: Picture, metadata: dict[str, Any], format: str) -> bytes:
    """The bytes of a PNG or JPEG file with the metadata as JSON: PNG's text "Comment", JPEG's comment."""
    stream, text = BytesIO(), json.dumps(metadata, ensure_ascii=False)
    image = Image.fromarray(picture.pixels)
    if format == "png":
        info = PngInfo()
        info.add_itxt("Comment", text)
        image.save(stream, "PNG", pnginfo=info)
    else:
        image.save(stream, "JPEG", quality=95, comment=text.encode())
    return stream.getvalue()


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What :func:`encode_picture` wrote into a file; raises :class:`DataError` where there is nothing."""
    with Image.open(path) as image:
        image.load()
        text = image.info.get("Comment", image.info.get("comment"))
    if not text:
        raise DataError(
            path, "no comment", "a picture of back_translate.py", "Other pictures say nothing of themselves."
        )
    return parse_json(text if isinstance(text, bytes) else text.encode(), str(path))


def _known_files(root: Path) -> dict[str, Any]:
    path = root / JOURNALS / NAME / HASHES
    return parse_json(read_bytes(path), str(path)) if path.is_file() else {}


def _remember_files(root: Path, files: dict[str, Any]) -> None:
    write_atomic(root / JOURNALS / NAME / HASHES, (json.dumps(files, indent=1) + "\n").encode())


def unused_pictures(dataset: Dataset) -> list[str]:
    """Pictures in `generated/` that no record names: of earlier runs, or imported and replaced since."""
    named = {record.generated.image for records in dataset.splits.values() for record in records if record.generated}
    folder = dataset.root / FOLDER
    there = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path.name for path in there if path.name[0] != "." and f"{FOLDER}/{path.name}" not in named]


# ------------------------------------------------------------------ the command


def unused_line(dataset: Dataset) -> str | None:
    """What the command says of :func:`unused_pictures`."""
    names = unused_pictures(dataset)
    if not names:
        return None
    return f"  {len(names)} files in {FOLDER}/ belong to no record (as {names[0]}): replaced, or not folded yet"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--model", type=Path, required=True, help="Stable Diffusion folder")
    parser.add_argument("--scheduler", help=f"one of {', '.join(SCHEDULERS)} (default: the folder's own)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5, help="up to 1 switches it off, which halves the time")
    parser.add_argument("--height", type=int, help="pixels (default: what the model was trained for)")
    parser.add_argument("--width", type=int)
    parser.add_argument("--negative-prompt", default="", help="what pictures should not show")
    parser.add_argument("--batch-size", type=int, default=4, help="pictures at a time on each device")
    parser.add_argument("--devices", type=int, help="use only so many")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="bfloat16 on GPUs and TPUs")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other pictures")
    parser.add_argument("--strip", nargs="+", choices=STRIPPED, default=(), help="leave these out of prompts")
    parser.add_argument("--format", choices=("png", "jpeg"), default="png")
    parser.add_argument("--only-missing", action="store_true", help="keep pictures from elsewhere")
    parser.add_argument(
        "--safety-checker", action=argparse.BooleanOptionalAction, default=True, help="the folder's, if it has one"
    )
    flags, done = parser.parse_args(), []

    def run() -> Dataset:
        drawing = Drawing(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(Drawing)})
        names = {field.name for field in dataclasses.fields(Options)} - {"drawing", "strip"}
        options = Options(drawing=drawing, strip=tuple(flags.strip), **{name: getattr(flags, name) for name in names})
        try:
            done.append(back_translate(flags.dataset, options, selection_of(flags)))
        except ExtraMissingError as error:
            sys.exit(f"{NAME}: {error}")
        return done[0]

    command(NAME, (NAME,), run)
    if done and (line := unused_line(done[0])):
        print(line)


if __name__ == "__main__":
    main()
