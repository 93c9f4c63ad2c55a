"""Settings of `experiments.transfer`, and the plans that they describe."""

import dataclasses
import math
from collections.abc import Iterable

from deid_jax.attacks import METHODS, LeastPerturbation, of_kind
from deid_jax.checks import count
from deid_jax.data import DATASETS, DataOptions
from deid_jax.data.images import CROPS
from deid_jax.errors import InputError
from deid_jax.metrics import SSIM_WINDOW
from deid_jax.models import MODELS
from deid_jax.photos import Strength
from deid_jax.photos.photo_processing import PHOTO_PROCESSING
from deid_jax.photos.verifiers import DEFAULTS, default_embedders
from deid_jax.recognisers.embedders import Embedder, name_of, split_list
from deid_jax.transfer import TransferPlan
from deid_jax.transfer.plan import OFFERED
from deid_jax.transforms.processing import PROCESSING
from deid_jax.transforms.random_transforms import TRANSFORMATIONS
from experiments._common import loading
from experiments._common.data_settings import ImageSettings
from experiments._common.flags import setting
from experiments._common.lists import read_names
from experiments._transfer.photo_runs import PhotoPlan

_BY_PIXEL = [name for name in OFFERED if METHODS[name].bounds_pixels]
_FIT = "mobilefacenet_ms1m,mobilefacenet_casia,mobilefacenet_ms1m+mobilefacenet_casia"
_PSNR, _PHOTO_PSNR = "40,42,44", "40,38"
_STEPS, _PHOTO_STEPS = 30, Strength().num_steps
# The settings that apply to whole photos; others must have their defaults.
_OF_PHOTOS = (
    *("photos", "gallery", "fit", "test", "psnr", "num_steps", "processing", "far"),
    *("keep_images", "seed", "output_dir"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferSettings(ImageSettings):
    """Settings of `experiments.transfer`."""

    dataset: str = setting("folder", "Data set.", choices=tuple(DATASETS))
    image_size: int = setting(112, "Height and width in pixels that images are resized to.")
    crop: str | None = setting(
        None,
        "Which part of an image file is the face; arcface, the template of recognisers of 112 "
        "px, takes images of 178x218 (CelebA's aligned ones) or 112x112 alone, auto takes "
        "any. Default: arcface.",
        choices=CROPS,
    )
    photos: str | None = setting(
        None,
        "Folder of whole photos, <person>/*, to protect instead of a data set's crops. It "
        "excludes flags of data sets, methods and opponents.",
    )
    gallery: str | None = setting(
        None, "With --photos: folder of other photos of the same persons, <person>/*."
    )
    fit: str | None = setting(
        None,
        "Surrogates: NAME, NAME:FILE or package.module:function (RGB images in [0, 1] to "
        "embeddings or logits); separated by commas, one run each; joined by +, several in "
        "one run. After its NAME:FILE a recogniser's NAME is enough. Default: "
        f"{_FIT}; with --photos, leave-one-out over the recognisers of --test, or over those "
        f"of {', '.join(DEFAULTS)} that are available.",
    )
    test: str | None = setting(
        None,
        "Judges, separated by commas. Default: all recognisers of --fit, so that each judges "
        "what was fitted on the others, too.",
    )
    classifiers: str = setting(
        "none",
        "Classifiers that judge, too, by commas, or none: trained here on the protocol's "
        f"galleries and probes; of {', '.join(MODELS)}.",
    )
    methods: str = setting("mifgvm", f"By commas, of {', '.join(OFFERED)}.")
    psnr: str | None = setting(
        None,
        "Budgets, separated by commas: the lowest PSNR of any image, in dB. Default: "
        f"{_PSNR}; with --photos, of the face, {_PHOTO_PSNR}.",
    )
    epsilon: str = setting(
        "4/255",
        f"Budgets beside these of sign methods ({', '.join(_BY_PIXEL)}), by commas, or none: "
        "the largest perturbation of a pixel, of a range of 1.",
    )
    num_steps: int | None = setting(
        None, f"Gradient steps. Default: {_STEPS}; with --photos {_PHOTO_STEPS}, as in protect."
    )
    transformations: str = setting(
        "none,resize_pad_flip",
        "What attacks foresee in every step, by commas, several at once joined by +: none or "
        f"of {', '.join(TRANSFORMATIONS)}.",
    )
    num_samples: int = setting(1, "Draws of the transformations in every step.")
    margin: float = setting(
        0.2,
        f"How far below the first --far's threshold, in similarity, least-perturbation methods "
        f"({', '.join(of_kind(METHODS, LeastPerturbation))}) go without a budget. "
        "Within one each photo's own is found.",
    )
    processing: str = setting(
        "all",
        "How protected photos are processed before they are judged, separated by commas: "
        f"{', '.join(PROCESSING)}; with --photos {', '.join(PHOTO_PROCESSING)}. Unprocessed "
        "photos (none) are always judged.",
    )
    far: str = setting(
        "0.01,0.001",
        "False accept rates, by commas: of all comparisons of a clean photo with the gallery "
        "of another person, the share that a threshold takes for one person. Attacks and most "
        "tables go by the first.",
    )
    per_person: int = setting(10, "Photos of each person to protect, at most.")
    gallery_size: int = setting(10, "Clean photos by which each person is known, at most.")
    num_pairs: int = setting(3000, "Clean pairs of one person, and of two, for the accuracy.")
    protocol: str | None = setting(
        None,
        "A protocol.json to keep to, whatever --per_person, --gallery_size and --num_pairs "
        "say. Default: drawn by the seed.",
    )
    average: int = setting(
        5, "An opponent averages so many protected photos of a person; 0 or 1: none does."
    )
    fine_tune: bool = setting(
        False,
        "An opponent trains each judging recogniser on half of the protected photos and is "
        "judged by the other half; functions have no weights to train.",
    )
    keep_images: bool = setting(False, "Keep every photo, under photos/RUN/<person>/.")
    seed: int = setting(0, "Decides every random choice.")
    output_dir: str = setting("runs/transfer", "Where to write.")

    def options(self) -> DataOptions:
        """Options for the data set's loader."""
        count("image_size", self.image_size, least=SSIM_WINDOW)
        crop = DataOptions.crop if self.dataset == "synthetic" else "arcface"
        return self.loader_options(DataOptions.split, self.seed, crop=crop)


def plan_of(settings: TransferSettings) -> tuple[TransferPlan, dict[str, str]]:
    """Parses the settings that hold lists.

    Returns:
      The plan, and for each recogniser's name the text by which the user gave it.

    Raises:
      InputError: an unknown name, or a number out of range.
    """
    written: dict[str, str] = {}
    fits = tuple(_named(group, written) for group in split_list(settings.fit or _FIT, ","))
    tests = tuple(written)
    if settings.test is not None:
        judging = (_named(group, written) for group in split_list(settings.test, ","))
        tests = tuple(dict.fromkeys(name for group in judging for name in group))
    for name in ("num_samples", "per_person", "gallery_size", "num_pairs"):
        count(name, getattr(settings, name), least=1)
    count("average", settings.average)
    if not -2 <= settings.margin <= 2:
        raise InputError(f"margin must be a cosine's, -2 to 2, got {settings.margin}")
    foreseen = tuple(
        ()
        if group == "none"
        else read_names("transformations", group.replace("+", ","), TRANSFORMATIONS)
        for group in _parts(settings.transformations)
    )
    epsilons = () if settings.epsilon == "none" else _numbers("epsilon", settings.epsilon, 1)
    plan = TransferPlan(
        fits=tuple(dict.fromkeys(fits)),
        judges=tests,
        methods=read_names("methods", settings.methods, OFFERED),
        psnrs=_numbers("psnr", settings.psnr or _PSNR, 200),
        epsilons=epsilons,
        transformations=tuple(dict.fromkeys(foreseen)),
        processing=_kinds(settings.processing, PROCESSING),
        fars=_numbers("far", settings.far, 1),
        num_steps=_steps(settings, _STEPS),
        num_samples=settings.num_samples,
        margin=settings.margin,
        average=settings.average,
        fine_tune=settings.fine_tune,
        seed=settings.seed,
    )
    return plan, written


def _kinds(text: str, known: Iterable[str]) -> tuple[str, ...]:
    """Reads --processing; processed results are compared with unprocessed ones."""
    kinds = ",".join(known) if text == "all" else text
    return read_names("processing", f"none,{kinds}", known)


def photo_plan_of(settings: TransferSettings) -> tuple[PhotoPlan, dict[str, Embedder]]:
    """`plan_of` for whole photos, and the recognisers by name.

    Raises:
      InputError: see `plan_of`; a setting that does not apply to photos, or no gallery; a
        recogniser cannot be loaded.
    """
    if settings.gallery is None:
        raise InputError("--photos needs a --gallery of other photos of the same persons")
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if field.name not in _OF_PHOTOS and value != field.default:
            raise InputError(f"--{field.name}={value} does not apply to --photos")
    count("seed", settings.seed, most=2**31 - 1)
    written: dict[str, str] = {}
    given = [] if settings.fit is None else split_list(settings.fit, ",")
    fits = [_named(group, written) for group in given]
    judges = tuple(written)
    if settings.test is not None:
        groups = [_named(group, written) for group in split_list(settings.test, ",")]
        judges = tuple(dict.fromkeys(name for group in groups for name in group))
    embedders: dict[str, Embedder] = {}
    if not written:
        found = default_embedders(loading.load_embedder_with_bar, [])
        embedders = {one.name: one for one in found}
        judges = tuple(embedders)
    if not fits:
        fits = [tuple(one for one in judges if one != name) for name in judges]
        if len(judges) < 2:
            raise InputError(f"leave-one-out needs two recognisers or more, got {judges[0]}")
    plan = PhotoPlan(
        fits=tuple(dict.fromkeys(fits)),
        judges=judges,
        psnrs=_numbers("psnr", settings.psnr or _PHOTO_PSNR, 200),
        processing=_kinds(settings.processing, PHOTO_PROCESSING),
        fars=_numbers("far", settings.far, 1),
        num_steps=_steps(settings, _PHOTO_STEPS),
        seed=settings.seed,
    )
    for name, text in written.items():
        embedders[name] = loading.load_embedder_with_bar(text, settings.image_size)
    return plan, embedders


def _steps(settings: TransferSettings, default: int) -> int:
    given = default if settings.num_steps is None else settings.num_steps
    count("num_steps", given, least=1)
    return given


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _named(group: str, written: dict[str, str]) -> tuple[str, ...]:
    """The recognisers in a list joined by +; adds name -> text as given to `written`."""
    names = []
    for text in split_list(group, "+"):
        name = name_of(text)
        if not name:
            raise InputError(f"recognisers must be named, got {group!r}")
        has_file = name != text
        if has_file and written.get(name, text) not in (text, name):
            raise InputError(f"recogniser {name} is given twice: {written[name]} and {text}")
        if has_file or name not in written:
            written[name] = text
        names.append(name)
    return tuple(dict.fromkeys(names))


def _numbers(flag: str, text: str, most: float) -> tuple[float, ...]:
    """Reads numbers "a,b,…"; fractions such as 4/255 are allowed."""
    quotients = [part.split("/") for part in _parts(text)]
    try:
        numbers = tuple(float(a) / math.prod(map(float, b)) for a, *b in quotients)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{flag} must be numbers by commas, got {text!r}") from None
    for number in numbers:
        if not (0 < number < most and math.isfinite(number)):
            raise InputError(f"{flag} must be numbers > 0 and < {most}, got {number:g}")
    return tuple(dict.fromkeys(numbers))
