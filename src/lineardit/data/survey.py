"""What a source holds: which pictures can be used, in which buckets, and why the others cannot."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lineardit.config.data import BucketConfig, CheckConfig
from lineardit.data.buckets import Bucket, Fit, bucket_families, fit
from lineardit.data.checks import Checked, CheckLog, Finding, check_source
from lineardit.data.labels import ordered
from lineardit.data.records import Caption, Declaring, PictureFile, Source


class Entry(NamedTuple):
    """A picture that can be used."""

    key: str
    picture: PictureFile
    captions: tuple[Caption, ...]
    fit: Fit
    sha256: str
    """Of its encoded bytes."""
    label: str | None = None
    """The class that it is of, where classes were asked for."""


class Problem(NamedTuple):
    """A file that is left out, and why."""

    key: str
    reason: str
    """A few words that are the same for all of a kind, a colon, and details."""

    @property
    def kind(self) -> str:
        """The part before the colon."""
        return self.reason.partition(":")[0]


@dataclass
class Survey:
    """All records of a source, sorted into those that can be used and those that cannot."""

    found: int = 0
    """Records in all."""
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    """What is done to pictures on the way to RGB, with the keys of those that it is done to."""
    repeats: list[str] = field(default_factory=list)
    """Keys of pictures whose bytes are those of an earlier one; they are used all the same."""
    given: int = 0
    """Pictures that have the caption of `CheckConfig`, for lack of one of their own."""
    declared: tuple[str, ...] = ()
    """Classes that the source says there are, by number."""

    def kinds(self) -> dict[str, list[Problem]]:
        """The problems by kind, the most frequent first."""
        kinds: dict[str, list[Problem]] = {}
        for problem in self.problems:
            kinds.setdefault(problem.kind, []).append(problem)
        return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))

    def buckets(self) -> dict[Bucket, list[Entry]]:
        """The pictures by bucket, from the smallest area to the largest."""
        buckets: dict[Bucket, list[Entry]] = {}
        for entry in self.entries:
            buckets.setdefault(entry.fit.bucket, []).append(entry)
        return dict(sorted(buckets.items(), key=lambda item: (item[0].height * item[0].width, item[0])))

    def classes(self) -> dict[str, int]:
        """The pictures of each class, by number; nothing unless classes were asked for."""
        counts = Counter(entry.label for entry in self.entries if entry.label is not None)
        return {name: counts[name] for name in ordered(counts, self.declared)} if counts else {}

    def report(self) -> dict[str, Any]:
        """Everything as JSON."""
        classes = self.classes()
        return {
            "found": self.found,
            "used": len(self.entries),
            "captions": sum(len(entry.captions) for entry in self.entries),
            "given_the_default_caption": self.given,
            **({"classes": classes} if classes else {}),
            "left_out": {kind: len(problems) for kind, problems in self.kinds().items()},
            "buckets": [
                {
                    "width": bucket.width,
                    "height": bucket.height,
                    "pictures": len(entries),
                    "mean_cropped": round(sum(entry.fit.cropped for entry in entries) / len(entries), 4),
                    "most_cropped": round(max(entry.fit.cropped for entry in entries), 4),
                    "enlarged": sum(entry.fit.enlargement > 1 for entry in entries),
                }
                for bucket, entries in self.buckets().items()
            ],
            "changed": self.notes,
            "repeated": self.repeats,
            "files_left_out": [{"file": each.key, "reason": each.reason} for each in self.problems],
        }


def survey(
    source: Source,
    buckets: BucketConfig,
    checks: CheckConfig,
    *,
    processes: int = 1,
    log: CheckLog | None = None,
    on_picture: Callable[[], None] = lambda: None,
) -> Survey:
    """Look at every record of a source. Never raises for what is wrong with its files.

    What `log` already knows is not looked at again; `on_picture` is called after each record.

    Raises:
        LineardiTError: a worker process was killed.
        OutputError: the log cannot be read or written.
    """
    result, families, seen = Survey(found=len(source)), bucket_families(buckets), Counter[str]()
    if checks.classes and isinstance(source, Declaring):
        result.declared = tuple(source.class_names)
    known = log.read() if log is not None else {}

    def sort(checked: Checked) -> None:
        finding = checked.finding
        reason = _reason(checked, families, checks)
        if reason is not None:
            result.problems.append(Problem(finding.key, reason))
            return
        record = checked.record
        assert record.picture is not None
        captions, label = record.captions, record.label if checks.classes else None
        if not captions and label is not None and checks.caption is None:
            captions = (Caption(label),)
        elif not captions:
            assert checks.caption is not None
            captions, result.given = (Caption(checks.caption),), result.given + 1
        fitted = fit(finding.height, finding.width, families)
        result.entries.append(Entry(record.key, record.picture, captions, fitted, finding.sha256, label))
        for note in finding.notes:
            result.notes.setdefault(note, []).append(record.key)
        if seen[finding.sha256]:
            result.repeats.append(record.key)
        seen[finding.sha256] += 1

    def run(keep: Callable[[Finding], None]) -> None:
        for checked in check_source(source, checks.max_pixels, processes=processes, known=known):
            if checked.finding.fingerprint and checked.finding != known.get(checked.finding.key):
                keep(checked.finding)
            sort(checked)
            on_picture()

    if log is None:
        run(lambda finding: None)
    else:
        with log.writing() as keep:
            run(keep)
    return result


def _reason(checked: Checked, families: tuple[tuple[Bucket, ...], ...], checks: CheckConfig) -> str | None:
    """Why a record cannot be used; None if it can."""
    record, finding = checked
    if finding.problem or record.problem:
        return finding.problem or record.problem
    fitted = fit(finding.height, finding.width, families)
    if fitted.enlargement > checks.max_enlargement:
        return (
            f"too small: {finding.width} x {finding.height} would be enlarged {fitted.enlargement:.2f} times "
            f"to {fitted.bucket.width} x {fitted.bucket.height}"
        )
    if checks.classes and record.label is None:
        return "no class"
    if not record.captions and checks.caption is None and not checks.classes:
        return "no caption"
    return None
