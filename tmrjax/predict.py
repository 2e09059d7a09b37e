"""Raw posts to entities and relations with a trained checkpoint: the functional API of the project.

>>> from tmrjax.predict import Predictor                                      # doctest: +SKIP
>>> predictor = Predictor.load("runs/demo/full")                              # doctest: +SKIP
>>> predictor.entities({"text": "Jordan at the harbour", "image": "a.jpg"})   # doctest: +SKIP
{'text': 'Jordan at the harbour', 'entities': [{'start': 0, 'end': 6, 'text': 'Jordan', 'label': 'LOC', ...}], ...}
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from tmrjax.compilation import Compiled, keep_compiled
from tmrjax.encoders.folders import resolve
from tmrjax.files import DataError, parse_json, read_bytes, sha256
from tmrjax.inputs.lost import unknown_warning
from tmrjax.inputs.marked import PairDistanceError
from tmrjax.prediction import folder as folder_files
from tmrjax.prediction.ahead import DEPTH, PAUSE, one_at_a_time, worked_ahead
from tmrjax.prediction.card import model_card
from tmrjax.prediction.posts import (
    Given,
    Post,
    PostError,
    PostOptions,
    PostPictures,
    UnreadPostsError,
    id_of,
    located,
    read_post,
    with_pair,
    without_pair,
)
from tmrjax.records.schema import NO_RELATION, DatasetInfo, Record
from tmrjax.tasks import system_from_meta
from tmrjax.tasks.entities import Prediction
from tmrjax.tasks.sources import tree_hash
from tmrjax.tasks.system import System
from tmrjax.text.splitting import Word, has_run
from tmrjax.text.tags import character_spans
from tmrjax.training.checkpoints import CheckpointError, load_best
from tmrjax.training.sharding import make_mesh, replicate

logger = logging.getLogger(__name__)

Posts = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]

JOINED_WITHOUT_BLANKS = ("graphemes", "characters", "segmented")
WORDS_BEFORE_A_SHARE = 20  # that are read before a share of them is worth a warning
ADVICE_ON_DISTANCE = "Leave the pair out, or train with a larger data.max_pieces."
UNCERTAIN = {
    "unseen": "some posts are in a script that writes no blanks between words, and the data that this checkpoint was "
    "trained on hold none (or it was saved before that was kept): a whole run is read as one word. Give 'tokens' as in "
    "the training data, or say how to split: word_splitting='graphemes' (--word-splitting)",
    "segmented": "some posts are in a script that writes no blanks between words, and the words of the training data "
    "were cut out by a program: raw text is split into characters here, so give 'tokens' cut by that program",
}


class Predictor:
    """A restored checkpoint that reads raw posts.

    Attributes:
        system, meta: of the checkpoint.
        joiner: what stands between the ``tokens`` of a post in its text.
        num_threads: that make batches and decode their pictures.
        compile_seconds: that went by until now to compile programs, or to fetch them from where they are kept.
    """

    def __init__(
        self,
        system: System,
        variables: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        devices: int | None,
        joiner: str | None = None,
        num_threads: int = 2,
    ):
        self.system, self.meta, self.num_threads = system, meta, num_threads
        self.joiner = ("" if system.text.word_splitting in JOINED_WITHOUT_BLANKS else " ") if joiner is None else joiner
        self.mesh = make_mesh(devices)
        self.variables = replicate(variables, self.mesh)
        self.compile_seconds = 0.0
        step = Compiled(system.predict_step(self.mesh), self)
        self._step = one_at_a_time(step) if self.mesh.size > 1 else step
        self._said: set[str] = set()
        self._warning = threading.Lock()
        self._words = self._unknown = 0

    @classmethod
    def load(
        cls,
        workdir: str | Path,
        *,
        revision: str | None = None,
        calibrated: bool = False,
        devices: int | None = None,
        windows: bool | None = None,
        word_splitting: str | None = None,
        joiner: str | None = None,
        num_threads: int = 2,
    ) -> Predictor:
        """The best checkpoint of a workdir with the temperature of its report, or an exported folder.

        Compiled programs are kept for the next process (:func:`tmrjax.compilation.keep_compiled`): a folder that JAX
        was told of, as by JAX_COMPILATION_CACHE_DIR, is used as it is; JAX_ENABLE_COMPILATION_CACHE=false keeps none.

        Args:
            workdir: of a training run or a conversion; a folder that :meth:`save` wrote; or "owner/name" of a model of
                the Hugging Face hub, which is fetched through its cache (HF_HUB_OFFLINE=1: from the cache alone).
            revision: of the hub's model: a commit, branch or tag.
            calibrated: give scores at the temperature that was fitted on dev when the run was over, of a run's
                report.json or an exported folder; what is predicted stays the same.
            devices: how many; all unless given.
            windows: whether NER reads long posts in windows; as trained unless given, and True for a checkpoint from
                before windows.
            word_splitting: how raw text becomes words, one of :data:`tmrjax.text.splitting.SPLITTINGS`; as the
                training data were split unless given.
            joiner: what stands between the ``tokens`` of a post in its text; a blank, and nothing where the training
                data were split into characters.
            num_threads: that make batches and decode their pictures.

        Raises:
            CheckpointError: there is none in ``workdir``, or a file of a folder is damaged or missing.
            ValueError: an unknown ``word_splitting``, a revision of a folder of this machine, or ``calibrated`` for a
                model without a temperature.
            FileNotFoundError, PermissionError, ConnectionError: the hub does not give a model of this name
                (:func:`tmrjax.encoders.folders.resolve`).
        """
        keep_compiled()
        if isinstance(workdir, str) and not Path(workdir).exists():
            workdir = resolve(workdir, revision=revision, files=folder_files.FILES).path
        elif revision is not None:
            raise ValueError(f"{workdir} is a folder of this machine, which has no revision {revision!r}")
        if folder_files.is_folder(Path(workdir)):
            variables, meta = folder_files.read_folder(Path(workdir))
        else:
            with _quiet_orbax():
                variables, meta = load_best(Path(workdir))
        system = system_from_meta(meta)
        text = dataclasses.replace(
            system.text,
            windows=meta["text"].get("windows", True) if windows is None else windows,
            word_splitting=word_splitting or system.text.word_splitting,
        )
        meta = {**meta, "temperature": meta.get("temperature") or _fitted_temperature(Path(workdir))}
        if calibrated and meta["temperature"] is None:
            raise ValueError(f"{workdir}: no temperature was fitted; finish the run, or leave out calibrated")
        system = dataclasses.replace(system, text=text, temperature=meta["temperature"] if calibrated else 1.0)
        return cls(system, variables, meta, devices=devices, joiner=joiner, num_threads=num_threads)

    def save(self, folder: str | Path, *, dtype: str = "float32", report: Mapping | None = None, **about: Any) -> None:
        """Write this model as one folder to hand over (:mod:`tmrjax.prediction.folder`).

        Args:
            folder: new, or written by this method before.
            dtype: "float32", with equal predictions to the last bit, or "bfloat16", half the size.
            report: the run's report.json, whose figures the model card tells.
            about: ``name`` that it is loaded by, ``languages``, ``licence``
                (:func:`tmrjax.prediction.card.model_card`).

        Raises:
            ValueError: another ``dtype``, or a folder that holds something else.
        """
        variables = jax.device_get(self.variables)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        card = model_card(
            folder_files.without_paths(self.meta), parameters, report=report,
            reads_pictures=self.system.method.pictures is not None, **about,
        )  # fmt: skip
        folder_files.write_folder(Path(folder), variables, self.meta, card, dtype=dtype)

    def push(self, name: str, *, private: bool = False, folder: str | Path | None = None, **options: Any) -> str:
        """Upload this model to the Hugging Face hub as ``owner/name``; returns its address there.

        ``folder``: one that :meth:`save` wrote, with a card that was edited perhaps; else it is written with
        ``options`` of :meth:`save`. Needs a token (``hf auth login``, HF_TOKEN). Raises what huggingface_hub raises.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        with tempfile.TemporaryDirectory() as temporary:
            if folder is None:
                folder = Path(temporary) / "model"
                self.save(folder, name=name, **options)
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(folder_files.FILES))
        return str(address)

    def identity(self) -> str:
        """SHA-256 over the system and its weights: equal where two predictors give equal results."""
        described = {key: value for key, value in self.system.to_meta().items() if key != "encoders"}  # their names
        described |= {"joiner": self.joiner, "temperature": self.system.temperature}
        described = json.dumps(described, sort_keys=True)
        return sha256((described + tree_hash(self.variables)).encode())

    def entities(
        self,
        posts: Posts,
        *,
        root: str | Path = ".",
        batch_size: int = 16,
        on_error: str = "raise",
        allow_outside: bool = False,
        carry: Sequence[str] = (),
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Entities of one post or of many; for a checkpoint of MNER.

        Args:
            posts: texts, or dicts with ``text`` or ``tokens``, and what there is of ``image``, ``regions``,
                ``phrases``, ``scores``, ``generated_image``, ``generated_regions``, ``generated_scores``, ``id``.
                A picture is a path, a PIL picture, an array uint8 [H, W, 3] or the bytes of a picture file. Other keys
                are carried through to the result, unless they look like a misspelt one of these.
            root: folder that paths of pictures are relative to. A path given as a string must not lead out of it; a
                ``pathlib.Path`` may.
            batch_size: posts at a time, rounded up to a multiple of the devices. Fewer posts are padded to 1, 4, 16,
                64, ... rows, so that few programs are compiled.
            on_error: "raise", or "return" an object {"id", "error"} in the place of a post that cannot be read.
            allow_outside: lift the rule of ``root``.
            carry: keys to carry through although they look like a misspelt one.

        Returns:
            per post {"id", "text", "entities", "masked", "unread_words", "unknown_words"}: entities with "start", "end"
            (characters; ``text[start:end]`` is the entity), "text", "label" and "score" (the exact probability, under
            the CRF, of this entity); masked names the inputs that the model was trained with and this post lacks;
            unread_words counts words behind the length limit, unknown_words those that the vocabulary does not know.

        Raises:
            tmrjax.files.DataError: the one post is not as described, or its picture cannot be read.
            UnreadPostsError: the same for some of many posts, after all the others are done.
            CheckpointError: the checkpoint is not one of MNER.
        """
        self._expect("ner", "entities", "relations")
        return self._all(posts, root, batch_size, on_error, allow_outside, carry)

    def relations(
        self,
        posts: Posts,
        *,
        entities: Predictor | None = None,
        keep_none: bool = False,
        root: str | Path = ".",
        batch_size: int = 16,
        on_error: str = "raise",
        allow_outside: bool = False,
        carry: Sequence[str] = (),
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Relations in one post or in many; for a checkpoint of MRE.

        Args:
            posts: as for :meth:`entities`, with ``head`` and ``tail``: [start, end) in characters of ``text``, or in
                words where the post has ``tokens``. A post without them is searched: every ordered pair of the
                entities that ``entities`` finds is asked for.
            entities: a checkpoint of MNER, for posts without ``head`` and ``tail``.
            keep_none: whether pairs that were found, not given, and have the relation ``None`` are listed too.
            root, batch_size, on_error, allow_outside, carry: as for :meth:`entities`.

        Returns:
            per post {"id", "text", "relations", "masked", "unread_words", "unknown_words", "unread_pairs"}: relations
            with "head" and "tail" (each {"start", "end", "text"} in characters, from :meth:`entities` also "label" and
            "score"), "relation" and "score" (its probability); unread_words counts words outside of the window around
            the pair, the largest number of any pair; unread_pairs counts found pairs too far apart for one window.

        Raises:
            tmrjax.files.DataError, UnreadPostsError: as for :meth:`entities`; also head and tail equal, a given pair
                too far apart, or no pair and no ``entities``.
            CheckpointError: the checkpoint is not one of MRE, or ``entities`` not one of MNER.
        """
        self._expect("re", "relations", "entities")
        search = {"entities": entities, "keep_none": keep_none}
        return self._all(posts, root, batch_size, on_error, allow_outside, carry, **search)

    def stream(self, posts: Iterable[Any], *, on_error: str = "raise", **options: Any) -> Iterator[dict[str, Any]]:
        """The results of :meth:`entities` or :meth:`relations`, post by post, in constant memory.

        The next ``chunk`` posts (1024 unless given, 256 with pictures) are sorted by length and prepared while the
        device works: at most two chunks are read beyond the last result. With ``on_error="raise"`` the first bad post
        raises in its place, after the results of those before it, and so does an error of the iterable. A
        :data:`tmrjax.prediction.ahead.PAUSE` among the posts asks for the results of all before it. ``options``:
        ``chunk`` and those of the task's method.
        """
        _check_on_error(on_error)
        numbers = itertools.count()
        given = (post if post is PAUSE else Given(post, f"post {next(numbers)}") for post in posts)
        for _, outcome in self.outcomes(given, **options):
            if isinstance(outcome, PostError):
                if on_error == "raise":
                    raise outcome.error
                outcome = outcome.to_json()  # noqa: PLW2901
            yield outcome

    def outcomes(
        self,
        posts: Iterable[Given],
        *,
        entities: Predictor | None = None,
        keep_none: bool = False,
        root: str | Path = ".",
        batch_size: int = 16,
        allow_outside: bool = False,
        carry: Sequence[str] = (),
        chunk: int | None = None,
    ) -> Iterator[tuple[Given, dict[str, Any] | PostError]]:
        """Each post with its result or its error, in order; what :meth:`stream` and the command are made of."""
        if entities is not None:
            entities._expect("ner", "entities", "relations")
        options = PostOptions(Path(root), allow_outside, self.system.text.word_splitting, self.joiner, tuple(carry))
        size = -(-batch_size // self.mesh.size) * self.mesh.size

        def work(some: list[Given], first: int) -> tuple[list, list]:
            return self._chunk(some, first, options, size, entities, keep_none)

        chunk = chunk or (1024 if self.system.method.pictures is None else 256)
        # Several processes must start their programs in one order, so there chunks come one by one.
        depth = DEPTH if jax.process_count() == 1 else 1
        for some, (found, read) in worked_ahead(work, posts, chunk, depth=depth):
            with self._warning:
                self._warn(read)
            yield from zip(some, found, strict=True)

    def _expect(self, task: str, called: str, instead: str) -> None:
        if self.system.task != task:
            raise CheckpointError(
                f"this checkpoint is one for {self.system.task!r}: it has .{instead}(), not .{called}()"
            )

    def _all(self, posts: Posts, root, batch_size: int, on_error: str, allow_outside: bool, carry, **search: Any):
        _check_on_error(on_error)
        single = isinstance(posts, str | Mapping)
        given = [Given(post, f"post {index}") for index, post in enumerate([posts] if single else posts)]
        options = {"root": root, "batch_size": batch_size, "allow_outside": allow_outside, "carry": carry}
        found = self.outcomes(given, **options, **search)
        results = [outcome for _, outcome in found]
        errors = [outcome for outcome in results if isinstance(outcome, PostError)]
        if errors and on_error == "raise":
            if single:
                raise errors[0].error
            raise UnreadPostsError([None if isinstance(one, PostError) else one for one in results], errors)
        results = [one.to_json() if isinstance(one, PostError) else one for one in results]
        return results[0] if single else results

    def _chunk(
        self,
        given: Sequence[Given],
        first: int,
        options: PostOptions,
        batch_size: int,
        entities: Predictor | None,
        keep_none: bool,
    ) -> tuple[list[dict[str, Any] | PostError], list[tuple[Post, dict[str, Any]]]]:
        """Results or errors of some posts, and what was read, to warn of; no error of one post touches another."""
        info = DatasetInfo(name="posts", task=self.system.task, labels=self.system.labels)
        posts: dict[int, Post] = {}
        errors: dict[int, DataError] = {}
        for index, one in enumerate(given):
            try:
                if one.error is not None:
                    raise one.error
                posts[index] = read_post(one.post, info, where=one.where, options=options)
            except DataError as failure:
                errors[index] = failure
        if self.system.task == "ner":
            asked = [(index, None, post.record) for index, post in posts.items()]
        else:
            asked = self._pairs(given, posts, errors, options, batch_size, entities)
        rows, unread_pairs = [], Counter()
        for index, pair, record in asked:
            try:
                rows.append((index, pair, *self.system.encode([record], say=None)))
            except PairDistanceError as failure:
                if posts[index].pair is None:
                    unread_pairs[index] += 1
                else:
                    errors[index] = DataError(
                        given[index].where,
                        failure.found,
                        failure.expected,
                        "Leave the pair out, or train with a larger data.max_pieces.",
                    )
        pixels = self.system.pixels(options.root, num_threads=self.num_threads)
        pictures = pixels and PostPictures(pixels, {post.record.id: post.pictures for post in posts.values()})
        examples = [example for _, _, example in rows]
        predictions = self.system.predict(
            self._step, self.variables, examples, pictures, self.mesh, batch_size=batch_size,
            num_threads=self.num_threads, probabilities=True,
        )  # fmt: skip
        results = {}
        for index, post in posts.items():
            failure = pictures.errors.get(post.record.id) if pictures else None
            if failure is not None:
                errors.setdefault(index, failure)
            kind = {"ner": "entities", "re": "relations"}[self.system.task]
            results[index] = {"id": post.id, "text": post.text, kind: [], "masked": self._masked(post.record)}
            results[index] |= {"unread_words": 0, "unknown_words": 0}
            if kind == "relations":
                results[index]["unread_pairs"] = unread_pairs[index]
        for (index, pair, example), prediction in zip(rows, predictions, strict=True):
            result, post = results[index], posts[index]
            result["unread_words"] = max(result["unread_words"], len(example.pieces.cut))
            result["unknown_words"] = len(example.pieces.unknown)
            if pair is None:
                result["entities"] = _entities(post.text, post.words, prediction)
            elif prediction.relation != NO_RELATION or keep_none or post.pair:
                relation = {"relation": prediction.relation, "score": prediction.probability}
                result["relations"].append({"head": pair[0], "tail": pair[1], **relation})
        outcomes = [
            PostError(first + index, id_of(one.post), errors[index])
            if index in errors
            else results[index] | posts[index].carried
            for index, one in enumerate(given)
        ]
        return outcomes, [(posts[index], results[index]) for index in posts if index not in errors]

    def _pairs(
        self, given, posts: Mapping[int, Post], errors: dict[int, DataError], options: PostOptions, batch_size, entities
    ) -> list[tuple[int, tuple, Record]]:
        """(post, pair, record) of every pair that is asked for: the given one, or all of the entities of a post."""
        pairs = {i: [tuple(located(post, span) for span in post.pair)] for i, post in posts.items() if post.pair}
        without = [index for index, post in posts.items() if post.pair is None]
        if entities is None:
            for index in without:
                errors[index] = DataError(
                    given[index].where,
                    "neither 'head' nor 'tail'",
                    "two spans, or a checkpoint of MNER to find entities with",
                    "Give both spans, or entities=Predictor.load(MNER_WORKDIR) (--entities on the command line).",
                )
        else:
            plain = [given[i]._replace(post=without_pair(given[i].post)) for i in without]
            found = entities.outcomes(
                plain,
                root=options.root,
                batch_size=batch_size,
                allow_outside=options.allow_outside,
                carry=options.carry,
                chunk=max(len(plain), 1),
            )
            for index, (_, outcome) in zip(without, found, strict=True):
                if isinstance(outcome, PostError):
                    errors[index] = outcome.error
                else:
                    pairs[index] = list(itertools.permutations(outcome["entities"], 2))
        asked = [(index, pair) for index in sorted(pairs) for pair in pairs[index]]
        return [(index, pair, with_pair(posts[index], pair)) for index, pair in asked]

    def _masked(self, record: Record) -> list[str]:
        return [name for one in self.system.fitted for name in one.lacking(record)]

    def _warn(self, read: Sequence[tuple[Post, Mapping[str, Any]]]) -> None:
        """What a user should know of the posts, each thing once in the life of a predictor."""
        text = self.system.text
        for name in dict.fromkeys(name for _, result in read for name in result["masked"]):
            count = sum(name in result["masked"] for _, result in read)
            if count:
                zeros = "picture" in name and self.system.pictures.missing == "zeros"
                instead = "zeros take its place" if zeros else "that input is masked"
                self._say(name, "%d of %d posts come without %s: %s", count, len(read), name, instead)
        unread = sum(result["unread_words"] > 0 for _, result in read)
        if unread:
            self._say(
                "unread",
                "%d of %d posts have words outside of the limit of %d word pieces, which are not read: 'unread_words' "
                "of a result counts them",
                unread, len(read), text.max_pieces,
            )  # fmt: skip
        if text.word_splitting in UNCERTAIN and any(post.is_raw and has_run(post.text) for post, _ in read):
            self._say("splitting", "%s", UNCERTAIN[text.word_splitting])
        self._words += sum(len(post.words) for post, _ in read)
        self._unknown += sum(result["unknown_words"] for _, result in read)
        unknown = unknown_warning(self._words, self._unknown) if self._words >= WORDS_BEFORE_A_SHARE else None
        if unknown:
            self._say("unknown", "%s", unknown)

    def _say(self, what: str, message: str, *arguments: Any) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning(f"{message} (said once)", *arguments)


def _fitted_temperature(workdir: Path) -> float | None:
    """What the report of a finished run says; None without one."""
    path = workdir / "report.json"
    if not path.is_file():
        return None
    found = parse_json(read_bytes(path), str(path))
    found = found.get("calibration", {}).get("temperature") if isinstance(found, dict) else None
    return found if isinstance(found, float) else None


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Orbax warns of its own defaults whenever a checkpoint is opened; its errors are exceptions."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl_logger.setLevel(level)


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error must be 'raise' or 'return', not {on_error!r}")


def _entities(text: str, words: Sequence[Word], prediction: Prediction) -> list[dict[str, Any]]:
    located = character_spans(prediction.spans, words)
    return [
        {"start": start, "end": end, "text": text[start:end], "label": label, "score": probability}
        for (start, end, label), probability in zip(located, prediction.probabilities, strict=True)
    ]
