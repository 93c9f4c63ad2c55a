"""Perturbs the faces of a video frame by frame, and judges them in the written file."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.photos import face_attack
from deid_jax.photos.canvases import Canvas
from deid_jax.photos.face_attack import Canvases
from deid_jax.photos.faces import Detector, Face
from deid_jax.photos.files import is_grey
from deid_jax.photos.protector import Protector
from deid_jax.photos.verdicts import crops_to_judge, views
from deid_jax.photos.verifiers import (
    FaceCrops,
    Verifier,
    all_match_gallery,
    largest_similarities,
    own_crops,
)
from deid_jax.types import NumpyArray
from deid_jax.videos.tracks import Track

# Gradient steps of a frame that starts from the previous frame's perturbation.
NEXT_STEPS = 4
# Crops that recognisers embed at a time.
_BATCH = 32

# Comparable embeddings of one detected face, float64[D] for each recogniser.
FaceEmbeddings = list[NumpyArray]


class FollowedFace:
    """A track, the embeddings of its person, and its results so far.

    The track's number decides the random choices.
    """

    def __init__(
        self, track: Track[FaceEmbeddings], verifiers: Sequence[Verifier], number: int
    ):
        self.track = track
        means = [
            verifier.mean_of(np.stack(own))
            for verifier, own in zip(verifiers, zip(*track.features, strict=True), strict=True)
        ]
        self.references = [
            verifier.references(mean) for verifier, mean in zip(verifiers, means, strict=True)
        ]
        self.in_gallery = all_match_gallery(verifiers, means)
        self._fitted = np.array([verifier.is_surrogate for verifier in verifiers])
        self.number = number
        self.level = self.began = 0
        self.begin()

    def begin(self) -> None:
        """Begins a round at the level that the previous round reached."""
        self.began = self.level
        self.perturbation: NumpyArray | None = None
        self.idle: set[int] = set()
        self.num_frames, self.first, self.last = 0, -1, -1
        self.fooled = np.zeros(len(self.references), int)
        self.similarities = np.full(len(self.references), -math.inf)
        self.lowest_psnr, self.sum_psnr = math.inf, 0.0

    @property
    def matched(self) -> bool:
        """Whether a surrogate matched the face in a judged frame; judges never steer."""
        return bool((self.fooled[self._fitted] < self.num_frames).any())

    def covers(self, number: int) -> bool:
        """Whether the face may be in a frame."""
        return self.track.first <= number <= self.track.last

    def judged(
        self, number: int, seen: NumpyArray, thresholds: NumpyArray, psnr: float
    ) -> bool:
        """Adds a frame's verdict: the largest similarity for each recogniser, and the PSNR.

        Returns False for an idle frame in which nobody matches: the face is not there.
        """
        fooled = seen < thresholds
        if number in self.idle and fooled.all():
            return False
        self.first = number if self.first < 0 else self.first
        self.last = number
        self.num_frames += 1
        self.fooled += fooled
        self.similarities = np.maximum(self.similarities, seen)
        self.lowest_psnr = min(self.lowest_psnr, psnr)
        self.sum_psnr += psnr
        return True


class VideoAttack:
    """Perturbs faces frame by frame."""

    def __init__(self, protector: Protector, key: jax.Array, followed: Sequence[FollowedFace]):
        self._protector = protector
        self._strength = protector.strength
        self._key = key
        self._followed = followed
        self._margin = 0.0

    def begin(self, margin: float, *, last: bool = False) -> None:
        """Begins a new round: similarities must be `margin` below the surrogates' thresholds.

        A face that is still matched although its level did not rise gets more strength: half of
        what remains up to the cap, and all of it in the last round.
        """
        self._margin = margin
        cap = len(self._strength.psnrs) - 1
        for one in self._followed:
            if one.matched and one.level == one.began:
                left = cap - one.level
                one.level += left if last else -(-left // 2)
            one.begin()

    def may_improve(self) -> bool:
        """Whether a face that did not begin at the cap is still matched.

        At the cap a round could only add steps, which hardly change similarities in the encoded
        file and take several times as long.
        """
        cap = len(self._strength.psnrs) - 1
        return any(one.matched and one.began < cap for one in self._followed)

    def perturb(self, number: int, pixels: NumpyArray) -> NumpyArray | None:
        """Perturbs the faces of a frame, uint8[H, W, 3]; None if it has no faces."""
        for one in self._followed:
            if number > one.track.last:
                one.perturbation = None  # Memory must not grow with the video.
        own = [one for one in self._followed if one.covers(number)]
        if not own:
            return None
        shown = self._seen(number, own, pixels)
        kept = [
            place for place, one in enumerate(own) if self._shows(one, number, shown[place])
        ]
        if not kept:
            return None
        own = [own[place] for place in kept]
        places = [Canvas.around(one.track.at(number), pixels) for one in own]
        grey = is_grey(pixels)
        canvases = Canvases.of(self._protector.surrogates, pixels, places, grey=grey)
        few = min(NEXT_STEPS, self._strength.num_steps)
        most = self._strength.num_steps
        steps = [most if one.perturbation is None else few for one in own]
        todo = list(range(len(own)))
        while todo:
            self._step(number, own, canvases, steps, todo)
            found = [one.perturbation for one in own if one.perturbation is not None]
            psnrs = [self._strength.psnrs[one.level] for one in own]
            faces = zip(places, found, strict=True)
            changed = face_attack.add(pixels, faces, psnrs, grey=grey)
            matched = self._still_matched(number, own, changed)
            todo = [n for n in matched if self._harder(own[n], steps, n)]
        return changed

    def _seen(self, number: int, own: Sequence[FollowedFace], pixels: NumpyArray) -> NumpyArray:
        """The largest similarity of each face of a frame for each surrogate: float64[N, V]."""
        surrogates = self._protector.surrogates
        every = enumerate(self._protector.verifiers)
        columns = [n for n, verifier in every if verifier.is_surrogate]
        known = [[one.references[n] for n in columns] for one in own]
        faces = [one.track.at(number) for one in own]
        crops = [own_crops(surrogates, pixels, [face]) for face in faces]
        return largest_similarities(surrogates, known, crops)

    def _still_matched(
        self, number: int, own: Sequence[FollowedFace], pixels: NumpyArray
    ) -> list[int]:
        """The faces whose similarity is not below every surrogate's threshold by the margin."""
        surrogates = self._protector.surrogates
        limits = np.array([one.threshold for one in surrogates]) - self._margin
        found = self._seen(number, own, pixels)
        return np.flatnonzero((found >= limits).any(axis=1)).tolist()

    def _shows(self, one: FollowedFace, number: int, seen: NumpyArray) -> bool:
        """Whether the face is visible: outside its detections it may be absent."""
        thresholds = [verifier.threshold for verifier in self._protector.surrogates]
        shown = one.track.detected(number) or bool((seen >= thresholds).any())
        if not shown:
            one.idle.add(number)
        return shown

    def _harder(self, one: FollowedFace, steps: list[int], place: int) -> bool:
        """Uses all steps first, then the next level; False if there is none."""
        if steps[place] < self._strength.num_steps:
            steps[place] = self._strength.num_steps
            return True
        if one.level + 1 < len(self._strength.psnrs):
            one.level += 1
            return True
        return False

    def _step(
        self,
        number: int,
        own: Sequence[FollowedFace],
        canvases: Canvases,
        steps: Sequence[int],
        todo: Sequence[int],
    ) -> None:
        """Perturbs the faces `todo`, batching those with the same level and steps."""
        kinds = {n: (own[n].level, steps[n], own[n].perturbation is None) for n in todo}
        for level, num_steps, new in sorted(set(kinds.values())):
            places = [n for n in todo if kinds[n] == (level, num_steps, new)]
            faces = [own[n] for n in places]
            keys = [jax.random.fold_in(self._key, one.number) for one in faces]
            found = face_attack.perturbations(
                self._protector.verifiers,
                canvases.take(places),
                [one.references for one in faces],
                None if new else np.stack([np.asarray(one.perturbation) for one in faces]),
                psnr=self._strength.psnrs[level],
                keys=jnp.stack([jax.random.fold_in(key, number) for key in keys]),
                num_steps=num_steps,
            )
            for one, perturbation in zip(faces, found, strict=True):
                one.perturbation = perturbation


@dataclasses.dataclass
class VideoJudge:
    """Judges every face of every frame of the written video.

    It judges the crop that was perturbed and, in every n-th frame, in which the detector looks
    for faces in the written video, all crops by which photos are judged. The largest similarity
    counts. The faces store their verdicts. Where no surrogate matched a face, so that it was
    not perturbed, the frame counts if any recogniser matches it.
    """

    verifiers: Sequence[Verifier]
    detector: Detector
    followed: Sequence[FollowedFace]
    every: int
    # The frames with a face.
    face_frames: set[int] = dataclasses.field(default_factory=set)
    # Faces waiting to be embedded: the face, its frame, its PSNR, its crops.
    waiting: list[tuple[FollowedFace, int, float, FaceCrops]] = dataclasses.field(
        default_factory=list
    )

    def see(self, number: int, before: NumpyArray, after: NumpyArray) -> None:
        """Adds a frame, uint8[H, W, 3], of the source and of the written video."""
        own = [one for one in self.followed if one.covers(number)]
        if not own:
            return
        faces = [one.track.at(number) for one in own]
        looks = number % self.every == 0
        found = self.detector(after) if looks else []
        cut = crops_to_judge if looks else own_crops
        for one, aligned in zip(own, views(faces, found), strict=True):
            psnr = _psnr(before, after, aligned[0])
            crops = cut(self.verifiers, after, aligned)
            self.waiting.append((one, number, psnr, crops))
        if sum(len(crops[0]) for *_, crops in self.waiting) >= _BATCH:
            self.finish()

    def finish(self) -> None:
        """Judges the frames that are still waiting."""
        if not self.waiting:
            return
        faces, numbers, psnrs, crops = zip(*self.waiting, strict=True)
        thresholds = np.array([verifier.threshold for verifier in self.verifiers])
        found = largest_similarities(self.verifiers, [one.references for one in faces], crops)
        for one, number, psnr, seen in zip(faces, numbers, psnrs, found, strict=True):
            if one.judged(number, seen, thresholds, psnr):
                self.face_frames.add(number)
        self.waiting.clear()


def _psnr(before: NumpyArray, after: NumpyArray, face: Face) -> float:
    """PSNR of the face in dB, see `Canvas.error`."""
    error = Canvas.around(face, before).error(before, after)
    return -10 * math.log10(error) if error > 0 else 100.0
