"""Entities or relations of raw posts with a trained checkpoint of either task.

python experiments/predict.py --workdir=runs/demo/full --input=posts.jsonl --output=entities.jsonl
python experiments/predict.py --workdir=runs/demo/relations --entities=runs/demo/full --input=... --output=...
other-program | python experiments/predict.py --workdir=runs/demo/full --input=- --output=- | another-program

Each line of the input is a post: {"text": ...} or {"tokens": [...]}, with "image" and "generated_image" (paths relative
to --root, by default the input's folder), "regions", "phrases", "scores" where there are some. For relations also
"head" and "tail", [start, end) in characters of the text or in tokens; without them --entities finds the entities, and
every pair of them is asked for. Other keys are carried through to the output.

Results are written to OUTPUT.partial as they come, in the order of the input, which becomes OUTPUT at the end; a run
that was stopped goes on with the same command. The memory does not grow with the input. --min-score leaves unsure
answers out, --abstain-below keeps silent on posts that have one, --review=FILE lists the posts in which a second look
mends most. With --on-error=skip posts that cannot be read are listed in OUTPUT.skipped.jsonl with file, line and id.

With --input=- --output=- posts come from stdin and results go to stdout, one line for each post that is no blank line,
in order and at once: when stdin pauses for a twentieth of a second, or ends, all that was read is answered. Nothing is
kept, so a run that was stopped begins anew. With --on-error=skip {"id", "error"} stands in the place of a post that
cannot be read, and the exit code is 0; else the command ends there with 1, behind the results before it. What was
found is told on stderr.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from experiments.lib import command
from experiments.lib.journal import Journal
from experiments.lib.pipes import lines_of
from tmrjax.files import DataError, jsonl_bytes, open_regular, parse_json, write_atomic
from tmrjax.predict import Predictor
from tmrjax.prediction.ahead import PAUSE
from tmrjax.prediction.certainty import chosen, expected_errors, most_worth_a_look
from tmrjax.prediction.posts import Given, PostError
from tmrjax.text.splitting import SPLITTINGS

logger = logging.getLogger(__name__)
FLAGS = flags.FLAGS

PIPE = "-"  # stdin as the input, stdout as the output
SECONDS_BETWEEN_LINES = 30  # of the log where the output is no terminal


def define_flags() -> None:
    """Flags of this command."""
    command.define_flags()
    flags.DEFINE_string("workdir", None, "Folder of a training run.")
    flags.DEFINE_string("entities", None, "Folder of an MNER run, to find the entities between which relations are.")
    flags.DEFINE_string("input", None, "JSONL file of posts, or - for stdin.")
    flags.DEFINE_string("output", None, "JSONL file to write, or - for stdout.")
    flags.DEFINE_string("root", None, "Folder that pictures' paths are relative to; the input's own unless given.")
    flags.DEFINE_integer("batch_size", 32, "Posts at a time.", lower_bound=1)
    flags.DEFINE_integer("num_threads", 2, "Threads that make batches and decode their pictures.", lower_bound=1)
    flags.DEFINE_enum("on_error", "raise", ["raise", "skip"], "What to do with a post that cannot be read.")
    flags.DEFINE_bool("allow_outside", False, "Let paths of pictures lead out of --root (posts that you trust).")
    flags.DEFINE_list("carry", [], "Keys to carry through although they look like a misspelt key of a post.")
    flags.DEFINE_bool("calibrated", False, "Scores at the temperature that was fitted on dev.")
    flags.DEFINE_float("min_score", 0.0, "Leave answers out whose score is lower.", 0.0, 1.0)
    flags.DEFINE_float("abstain_below", 0.0, "Give no answer for a post that has one with a lower score.", 0.0, 1.0)
    flags.DEFINE_string("review", None, "JSONL file to write: the posts with most expected errors, the worst first.")
    flags.DEFINE_integer("review_posts", 1000, "How many posts --review lists.", lower_bound=1)
    flags.DEFINE_bool("keep_none", False, "List pairs of found entities without a relation too.")
    flags.DEFINE_bool("windows", None, "Read long posts in windows (NER); as trained unless given.")
    flags.DEFINE_enum("word_splitting", None, list(SPLITTINGS), "How text becomes words; as trained unless given.")
    flags.DEFINE_string("joiner", None, "What stands between tokens in the text; a blank, or as trained.")


def main(_) -> None:
    """Flags in, JSONL out."""
    ends = [name for name in ("input", "output") if getattr(FLAGS, name) == PIPE]
    if not ends:
        predict_file(Path(FLAGS.input), Path(FLAGS.output))
    elif len(ends) == 1:
        raise ValueError(f"--{ends[0]}=- goes with the other end: give --input=- --output=-, or two files")
    elif FLAGS.review:
        raise ValueError("--review sorts all posts in the end, and a pipe keeps none: give --input and --output files")
    else:
        predict_pipe()


def loaded(root: Path) -> tuple[Predictor, str, dict[str, Any], dict[str, Any]]:
    """The predictor, what it finds, the options of its outcomes, and what results depend on besides the input."""
    settings = {
        "calibrated": FLAGS.calibrated,
        "windows": FLAGS.windows,
        "word_splitting": FLAGS.word_splitting,
        "joiner": FLAGS.joiner,
        "num_threads": FLAGS.num_threads,
    }
    predictor = Predictor.load(FLAGS.workdir, **settings)
    options: dict[str, Any] = {"root": FLAGS.root or root, "carry": FLAGS.carry}
    identity = {
        "workdir": predictor.identity(),
        "root": os.path.realpath(options["root"]),
        "carry": sorted(FLAGS.carry),
        **limits(),
    }
    kind = "entities"
    if predictor.system.task == "re":
        kind = "relations"
        options |= {"keep_none": FLAGS.keep_none, "entities": None}
        if FLAGS.entities:
            options["entities"] = Predictor.load(FLAGS.entities, **settings)
        entities = options["entities"] and options["entities"].identity()
        identity |= {"keep_none": FLAGS.keep_none, "entities": entities}
    options |= {"batch_size": FLAGS.batch_size, "allow_outside": FLAGS.allow_outside}
    return predictor, kind, options, identity


def limits() -> dict[str, float]:
    """What answers are left out by."""
    return {"min_score": FLAGS.min_score, "abstain_below": FLAGS.abstain_below}


def predict_file(source: Path, output: Path) -> None:
    """A file to a file, with a journal to go on from."""
    digest, total = survey(source)
    predictor, kind, options, identity = loaded(source.parent)
    journal = Journal(output, identity | {"input": digest, "review": bool(FLAGS.review)})
    begun, before = time.monotonic(), journal.counts["posts"]
    counts = journal.counts
    if journal.resumed:
        logger.info("%s: goes on behind line %d, %d posts are done", output, journal.line, counts["posts"])
    try:
        lines = read_posts(source, journal.offset, journal.line)
        for given, outcome in reported(predictor.outcomes(lines, **options), total, counts):
            if isinstance(outcome, PostError):
                if FLAGS.on_error == "raise":
                    raise unread(outcome.error, counts["posts"])
                entry = {"file": source.name, "line": given.position[0], "id": outcome.id, "error": str(outcome.error)}
                journal.skip(entry)
            else:
                told = {"expected_errors": expected_errors(outcome)} if FLAGS.review else {}
                result = chosen(outcome, **limits()) | told
                journal.write(result)
                count(counts, result, kind)
            counts["posts"] += 1
            journal.done_to(*given.position)
    finally:
        journal.commit()
        journal.close()
    journal.finish()
    compiling = predictor.compile_seconds + (options["entities"].compile_seconds if options.get("entities") else 0)
    told = counts["posts"] - before, time.monotonic() - begun, compiling
    logger.info("%d posts in %.1f s, %.1f s of them to compile or fetch programs", *told)
    print(summary(counts, kind, output, journal.skipped))
    if FLAGS.review:
        print(write_review(output, Path(FLAGS.review), FLAGS.review_posts))


def predict_pipe() -> None:
    """stdin to stdout, without a journal."""
    predictor, kind, options, _ = loaded(Path())
    counts: Counter[str] = Counter()
    try:
        for _, outcome in predictor.outcomes(piped_posts(sys.stdin.fileno()), **options):
            if isinstance(outcome, PostError):
                if FLAGS.on_error == "raise":
                    raise unread(outcome.error, counts["posts"], "answered")
                result = outcome.to_json()
                counts["skipped"] += 1
            else:
                result = chosen(outcome, **limits())
                count(counts, result, kind)
            counts["posts"] += 1
            sys.stdout.buffer.write(jsonl_bytes([result]))
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Nobody reads any more. Python would try to flush once more at the end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
    print(summary(counts, kind, "stdout", "stdout has their errors"), file=sys.stderr)


def write_review(output: Path, review: Path, posts: int) -> str:
    """Write the posts of the output that are most worth a look; returns what was written, as a sentence."""
    with output.open("rb") as stream:
        found = most_worth_a_look((parse_json(line, f"{output}:{n}") for n, line in enumerate(stream, 1)), posts)
    review.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(review, jsonl_bytes(found))
    errors = sum(result["expected_errors"] for result in found)
    return f"{len(found)} posts with {errors:.1f} expected errors, the most first, written to {review}"


def survey(source: Path) -> tuple[str, int]:
    """The SHA-256 of the input and the number of its posts, without holding them."""
    digest, posts = hashlib.sha256(), 0
    try:
        with open_regular(source) as stream:
            for line in stream:
                digest.update(line)
                posts += bool(line.strip())
    except OSError as error:
        raise DataError(source, error.strerror or str(error), "a readable file", "Check the path.") from None
    if not posts:
        raise DataError(source, "no post", "one JSON object per line", "Give it at least one.")
    return digest.hexdigest(), posts


def read_posts(source: Path, offset: int, line: int) -> Iterator[Given]:
    """The posts behind a line and a byte of the input; ``position`` is (line, byte behind it)."""
    with open_regular(source) as stream:
        stream.seek(offset)
        for number, raw in enumerate(stream, line + 1):
            offset += len(raw)
            found = read_line(raw, number, str(source))
            if found is not None:
                yield found._replace(position=(number, offset))


def piped_posts(descriptor: int) -> Iterator[Given | object]:
    """The posts of a pipe, and PAUSE where none comes."""
    number = 0
    for line in lines_of(descriptor):
        if line is PAUSE:
            yield PAUSE
            continue
        number += 1
        found = read_line(line, number, "stdin")
        if found is not None:
            yield found


def read_line(raw: bytes, number: int, source: str) -> Given | None:
    """The post of a line, or its error; None for a blank line."""
    content = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
    if not content:
        return None
    where, post, failure = f"{source}:{number}", None, None
    try:
        if not content.startswith(b"{"):
            raise DataError(
                where,
                f"{content[:40].decode('utf-8', 'replace')!r}, which is no JSON object: not JSONL",
                'a post on each line, as {"text": "..."}',
                "Plain text, CSV and JSON arrays must be rewritten so.",
            )
        post = parse_json(content, where)
    except DataError as error:
        failure = error
    return Given(post, where, failure)


def unread(error: DataError, done: int, fate: str = "kept") -> DataError:
    """The error of a post, with what the user can do now."""
    advice = f"{error.advice} The {done} posts before it are {fate}: --on-error=skip goes on without it."
    return DataError(error.where, error.found, error.expected, advice)


def count(counts: dict[str, int], result: dict[str, Any], kind: str) -> None:
    """Add up what the last line of the command tells."""
    counts[kind] += len(result[kind])
    for name in result["masked"]:
        counts[f"without {name}"] += 1
    counts["unread words"] += result["unread_words"]
    counts["words that are [UNK]"] += result["unknown_words"]
    counts["pairs too far apart"] += result.get("unread_pairs", 0)
    counts[f"{kind} below --min-score, left out"] += result.get("left_out", 0)
    counts["without answers, one being below --abstain-below"] += result.get("abstained", False)


def summary(counts: dict[str, int], kind: str, output: Path | str, skipped: Path | str) -> str:
    """What was found, and everything that was not read."""
    read = counts["posts"] - counts["skipped"]
    lines = [f"{counts[kind]} {kind} in {read} posts written to {output}"]
    if counts["skipped"]:
        lines.append(f"{counts['skipped']} posts could not be read: {skipped}")
    told = [f"{number} {name}" for name, number in counts.items() if number and name not in (kind, "posts", "skipped")]
    return "\n".join(lines + ([f"of these posts: {', '.join(told)}"] if told else []))


def reported(outcomes: Iterator, total: int, counts: dict[str, int]) -> Iterator:
    """The outcomes, with a bar on a terminal and a line every 30 seconds elsewhere."""
    begun = told = time.monotonic()
    before = counts["posts"]
    with tqdm(total=total, initial=before, desc="predict", unit=" posts", disable=None, leave=False) as bar:
        for outcome in outcomes:
            yield outcome
            bar.update()
            now = time.monotonic()
            if bar.disable and now - told >= SECONDS_BETWEEN_LINES:
                told, done = now, counts["posts"]
                speed = (done - before) / (now - begun)
                left = (total - done) / speed / 60
                logger.info("%d of %d posts, %.0f posts/s, about %.0f minutes left", done, total, speed, left)


def cli() -> None:
    """The command."""
    define_flags()
    flags.mark_flags_as_required(["workdir", "input", "output"])
    command.run(main)


if __name__ == "__main__":
    cli()
