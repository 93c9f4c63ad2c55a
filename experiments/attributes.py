"""Measures how well expression, pose, age and other attributes survive de-identification.

    python -m experiments.attributes --runs=DIR,DIR,...

Each DIR is an output folder of `experiments.attack`, and all must hold the same images. A
classifier predicts every attribute of the original and of the written 8-bit image; the
agreement is the share of images for which both predictions are equal. The classifier is
trained on persons who are not in the runs, and its checkpoint is kept under checkpoints/.
Writes `attributes.csv` (one line per run and attribute), `attributes.md` and `config.json`
into --output_dir.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deid_jax.data import DataOptions, FaceDataset, load_dataset
from deid_jax.errors import InputError
from deid_jax.evaluation import attributes
from deid_jax.evaluation.agreement import Agreement, agreement_on
from deid_jax.evaluation.attributes import AttributeClassifier, ClassifierInfo, Skill
from deid_jax.evaluation.records import Row
from deid_jax.recognisers import EpochRecord, checkpoints, storage
from deid_jax.reports.tables import percent
from deid_jax.runs import DESCRIPTION, RunFolder, describe
from experiments._attributes.attribute_runs import AttackRun, read_runs
from experiments._common import cli, terminal
from experiments._common.flags import setting

_CONTENTS = ("attributes.csv", "attributes.md")

# What the classifier is trained on: images of how many other seeds, and which split of each.
# A few images of many persons teach more than many images of a few. With CelebA, reading one
# split takes as long as reading all of them.
_OTHERS = {"synthetic": (40, "test"), "celeba": (10, "all")}
_LEAST_PERSONS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributesSettings:
    """Settings of `experiments.attributes`."""

    runs: str | None = setting(None, "Output folders of experiments.attack, by commas.")
    output_dir: str = setting("runs/attributes", "Where to write.")


@dataclasses.dataclass(frozen=True)
class AttributeResult:
    """The result for one attribute in one run: a line of `attributes.csv`."""

    run: AttackRun
    agreement: Agreement
    skill: Skill

    def to_row(self) -> Row:
        """The line of `attributes.csv`."""
        settings = ", ".join(f"{name} {value}" for name, value in self.run.settings.items())
        run: Row = {"method": self.run.method, "model": self.run.model, "settings": settings}
        skill: Row = {"classifier_kappa": self.skill.kappa, "told": self.skill.is_told}
        return run | vars(self.agreement) | skill


def run(settings: AttributesSettings) -> list[AttributeResult]:
    """Compares the runs, writes and prints the tables; returns the results, run by run.

    Raises:
      InputError: a folder without a complete run, runs on different images, a data set without
        attribute labels or with too few persons, or an output folder that cannot be written.
        Nothing is written in that case.
    """
    folder = RunFolder(Path(settings.output_dir), _CONTENTS)
    folder.check()
    runs = read_runs(settings.runs)
    if folder.path.resolve() in (one.folder.resolve() for one in runs):
        raise InputError(f"output_dir {folder.path} is one of the runs: name another folder")
    options = runs[0].data.options()
    originals = _originals(runs[0], options)
    for run_of, index in ((one, at) for one in runs for at in range(len(one.images))):
        run_of.read(index)
    classifier = _load_or_train_classifier(originals, options)
    results = _compare(runs, originals, classifier)
    info = dataclasses.asdict(classifier.info) | {"persons": len(classifier.info.persons)}
    description = describe(settings, classifier=info, data=dataclasses.asdict(runs[0].data))
    lines = _table(results, _headings(runs))
    with folder:
        folder.write_csv("attributes.csv", [one.to_row() for one in results])
        folder.write_text("attributes.md", _markdown(lines, runs[0], classifier.info))
        folder.write_json(DESCRIPTION, description)
    _print(lines, runs[0], folder.path)
    return results


def _originals(run: AttackRun, options: DataOptions) -> FaceDataset:
    """The run's images before de-identification, in the run's order."""
    faces = load_dataset(run.data.dataset, options)
    if faces.name not in _OTHERS or not faces.attributes:
        raise InputError(
            f"data set {faces.name} has no attribute labels here; {' and '.join(_OTHERS)} "
            "(with its list of attributes) have"
        )
    places = {image: index for index, image in enumerate(faces.image_names)}
    missing = [image for image in run.images if image not in places]
    if missing:
        raise InputError(
            f"{run.folder} has an image {missing[0]}, which data set {faces.name} lacks"
        )
    return faces.take([places[image] for image in run.images])


def _load_or_train_classifier(
    originals: FaceDataset, options: DataOptions
) -> AttributeClassifier:
    """The classifier for these images; trains it if there is no checkpoint yet."""
    path = attributes.classifier_path(originals.name, options)
    if storage.exists(path):
        return attributes.load_classifier(path, originals, options)
    checkpoints.check_target(path, overwrite=False)
    print(
        f"No attribute classifier at {path} yet: training one on other persons now.",
        file=sys.stderr,
    )
    with terminal.progress_bar("reading other persons") as update:
        others = other_faces(originals, options, update)
    with terminal.progress_bar("training the classifier") as update:

        def show(done: int, total: int, history: Sequence[EpochRecord]) -> None:
            held_out = percent(history[-1].test_accuracy if history else None)
            update(done, total, f"epoch {len(history) + 1}, test accuracy {held_out}")

        return attributes.train_classifier(
            others, options, path, config=attributes.RECIPE, progress=show
        )


def other_faces(
    evaluated: FaceDataset,
    options: DataOptions,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> FaceDataset:
    """Images of persons who are not evaluated, loaded from the data set with other seeds.

    All persons of `evaluated` are left out, including those without images in it; those in the
    result are named by `attributes.names_of_persons`.

    Raises:
      InputError: too few persons are left, or the loader fails.
    """
    num_seeds, split = _OTHERS[evaluated.name]
    known = set(attributes.names_of_persons(evaluated))
    persons: list[str] = []
    sets: list[FaceDataset] = []
    for number in range(1, num_seeds + 1):
        seed = (options.seed + number) % 2**31
        drawn = load_dataset(
            evaluated.name, dataclasses.replace(options, seed=seed, split=split)
        )
        own = attributes.names_of_persons(drawn)
        fresh = [name for name in own if name not in known]
        labels = {name: len(persons) + i for i, name in enumerate(fresh)}
        relabelled = np.array([labels.get(name, -1) for name in own], np.int32)[drawn.labels]
        part = dataclasses.replace(drawn, labels=relabelled)
        sets.append(part.take(np.flatnonzero(relabelled >= 0)))
        persons += fresh
        known.update(fresh)
        progress(number, num_seeds)
    if len(persons) < _LEAST_PERSONS:
        raise InputError(
            f"{evaluated.name} has {len(persons)} persons to train an attribute classifier on "
            f"beside the {len(evaluated.persons)} evaluated, {_LEAST_PERSONS} are needed"
        )
    return _joined(sets, tuple(persons))


def _joined(sets: Sequence[FaceDataset], persons: tuple[str, ...]) -> FaceDataset:
    """Joins data sets whose labels are already positions in `persons`."""
    reads = [functools.partial(one.read, index) for one in sets for index in range(len(one))]
    return dataclasses.replace(
        sets[0],
        persons=persons,
        labels=np.concatenate([one.labels for one in sets]),
        names=tuple(name for one in sets for name in one.names),
        read=lambda index: reads[index](),
        attributes={
            name: np.concatenate([one.attributes[name] for one in sets])
            for name in sets[0].attributes
        },
        provenance={},
    )


def _compare(
    runs: Sequence[AttackRun], originals: FaceDataset, classifier: AttributeClassifier
) -> list[AttributeResult]:
    info = classifier.info
    truth = attributes.encode(info.attributes, originals)
    before = classifier.classify(originals)
    results = []
    with terminal.progress_bar("comparing") as update:
        for done, one in enumerate(runs, start=1):
            after = classifier.classify(dataclasses.replace(originals, read=one.read))
            for place, attribute in enumerate(info.attributes):
                classes = (answers[:, place] for answers in (truth, before, after))
                agreement = agreement_on(attribute.name, *classes)
                results.append(AttributeResult(one, agreement, info.skills[place]))
            update(done, len(runs))
    return results


def _headings(runs: Sequence[AttackRun]) -> list[str]:
    """A heading for each run: its method, and what distinguishes it from others of the same."""
    headings = []
    for one in runs:
        others = [other for other in runs if other.method == one.method and other is not one]
        facts = {"model": one.model, **one.settings}
        telling = [
            f"{name} {value}"
            for name, value in facts.items()
            if any({"model": o.model, **o.settings}.get(name) != value for o in others)
        ] or [str(one.folder)]
        headings.append(f"{one.method} ({', '.join(telling)})" if others else one.method)
    return headings


def _table(results: Sequence[AttributeResult], headings: Sequence[str]) -> list[list[str]]:
    """The table's header and rows: one row per attribute, one column per run, means last."""
    count = len(results) // len(headings)
    columns = [results[start : start + count] for start in range(0, len(results), count)]
    lines = [["attribute", "chance", "accuracy", *headings]]
    for across in zip(*columns, strict=True):
        first = across[0].agreement
        shares = [first.chance, first.accuracy_before]
        shares += [one.agreement.agreement for one in across]
        name = first.attribute + ("" if across[0].skill.is_told else " *")
        lines.append([name, *(f"{100 * share:.1f}" for share in shares)])
    told = [[one.agreement for one in column if one.skill.is_told] for column in columns]
    if told[0]:
        means = [float(np.mean([one.chance for one in told[0]]))]
        means += [float(np.mean([one.accuracy_before for one in told[0]]))]
        means += [float(np.mean([one.agreement for one in column])) for column in told]
        lines.append(["mean", *(f"{100 * share:.1f}" for share in means)])
        kappas = [f"{np.mean([one.kappa for one in column]):.3f}" for column in told]
        lines.append(["mean kappa", "", "", *kappas])
    return lines


_MARKDOWN = """# Attributes before and after de-identification

{count} images of {dataset}, split {split}, seed {seed}, {image_size} px. Under each method:
the share of images, in %, for which a classifier predicts the same before and after.
Accuracy is its share of true answers on the originals, chance the share of the commonest
class, kappa agreement beyond chance (Cohen's). It was trained on {num_images} images of others.

{table}

{note}
"""
_NOTE = (
    "* On persons that it was not trained on, the classifier does not tell this attribute "
    f"(kappa with the truth below {attributes.LEAST_KAPPA:g}): the means leave it out."
)


def _markdown(lines: Sequence[Sequence[str]], run: AttackRun, info: ClassifierInfo) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))
    text = _MARKDOWN.format(
        count=len(run.images),
        num_images=info.num_images,
        table=table,
        note="" if all(skill.is_told for skill in info.skills) else _NOTE,
        **dataclasses.asdict(run.data),
    )
    return text.replace("* ", "\\* ").rstrip() + "\n"


def _print(lines: Sequence[Sequence[str]], run: AttackRun, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table, box

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if place else "left", no_wrap=not place)
    for cells in lines[1:]:
        table.add_row(*cells)
    print(f"Equal predictions before and after, in % of {len(run.images)} images:")
    Console().print(table)
    if any(cells[0].endswith("*") for cells in lines):
        print(_NOTE)
    print(f"Tables: {path}")


main = cli.binary(run, AttributesSettings)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
