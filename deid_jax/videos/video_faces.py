"""What is done to the faces of a video, frame by frame: changed, and judged."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from deid_jax.photos import protection
from deid_jax.photos.alignment import crop_matrix, support
from deid_jax.photos.faces import Detector, Face, overlap
from deid_jax.photos.judging import Witness, crops_of, directions, goal, knowledge, likeness
from deid_jax.photos.photo import Strength
from deid_jax.videos.tracking import Track

# Steps of frames that begin with a change.
NEXT_STEPS = 4
# The judge's crops are embedded so many at a time.
_BATCH = 32
# Boxes that overlap so far, intersection over union, are the same face's.
_SAME = 0.3


def mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    """float64[D], the direction of the mean of unit vectors."""
    middle = np.mean(rows, axis=0)
    return middle / np.linalg.norm(middle)


class Followed:
    """A track, what its person looks like, and what has become of it so far.

    Args:
      track: its places.
      references: unit vector float64[D] for each witness.
      number: decides its random choices.
    """

    def __init__(self, track: Track, references: Sequence[np.ndarray], number: int):
        self.track = track
        self.references = [own[None] for own in references]
        self.number = number
        self.level = self.began = 0
        self.begin()

    def know(self, witnesses: Sequence[Witness], known: Sequence[np.ndarray | None]) -> None:
        """Takes directions of a person's photos, [K, D] or None for each witness."""
        self.references = [
            knowledge(each[0], photos, witness.threshold)
            for witness, photos, each in zip(witnesses, known, self.references, strict=True)
        ]

    def begin(self) -> None:
        """Forgets a round, but for the level that it came to."""
        self.began = self.level
        self.change: np.ndarray | None = None
        self.idle: set[int] = set()
        self.num_frames, self.first, self.last = 0, -1, -1
        self.fooled = np.zeros(len(self.references), int)
        self.cosines = np.full(len(self.references), -1.0)
        self.lowest_psnr, self.sum_psnr = math.inf, 0.0

    @property
    def known(self) -> bool:
        """Whether a witness was not fooled in a frame that was judged."""
        return bool((self.fooled < self.num_frames).any())

    def covers(self, number: int) -> bool:
        """Whether the face is followed in a frame."""
        return self.track.first <= number <= self.track.last and number not in self.idle

    def judged(self, number: int, cosines: np.ndarray, thresholds: np.ndarray) -> None:
        """Takes a frame's verdict: the highest cosines of each witness."""
        self.first = number if self.first < 0 else self.first
        self.last = number
        self.num_frames += 1
        self.fooled += cosines < thresholds
        self.cosines = np.maximum(self.cosines, cosines)


class Attack:
    """Changes faces, frame after frame.

    Args:
      witnesses: who judges; those that are `fitted` are attacked.
      strength: what may be changed.
      key: one key.
      followed: the faces.
    """

    def __init__(
        self,
        witnesses: Sequence[Witness],
        strength: Strength,
        key: jax.Array,
        followed: Sequence[Followed],
    ):
        self._witnesses = witnesses
        self._strength = strength
        self._key = key
        self._followed = followed
        self._margin = 0.0
        self.num_gradients = 0

    def begin(self, margin: float, *, last: bool = False) -> None:
        """Begins with the first frame, to leave recognisers behind by a cosine of `margin`.

        A face that was still known, and not for want of strength against the fitted ones, gets
        more: half of what is left to the cap, in the last round all.
        """
        self._margin = margin
        cap = len(self._strength.psnrs) - 1
        for one in self._followed:
            if one.known and one.level == one.began:
                left = cap - one.level
                one.level += left if last else -(-left // 2)
            one.begin()

    def may_improve(self) -> bool:
        """Whether a face is still known that did not begin with the strongest change."""
        cap = len(self._strength.psnrs) - 1
        return any(one.known and one.began < cap for one in self._followed)

    def change(self, number: int, pixels: np.ndarray) -> np.ndarray | None:
        """A frame, uint8[H, W, 3], with its faces changed; None where there is none."""
        for one in self._followed:
            if one.change is not None and number > one.track.last:
                one.change = None  # So that memory does not grow with the video.
        own = [one for one in self._followed if one.covers(number)]
        if not own:
            return None
        matrices = [crop_matrix(one.track.at(number)) for one in own]
        crops = crops_of(pixels, matrices)
        seen = self._cosines(own, crops, self._witnesses)
        kept = [place for place, one in enumerate(own) if self._shows(one, number, seen[place])]
        if not kept:
            return None
        own, matrices = [own[place] for place in kept], [matrices[place] for place in kept]
        at = protection.crops_at(crops[kept], matrices, grey=_is_grey(pixels))
        few = min(NEXT_STEPS, self._num_steps)
        steps = [few if one.change is not None else self._num_steps for one in own]
        todo = list(range(len(own)))
        while todo:
            self._step(number, own, at, steps, todo)
            changed = protection.add(
                pixels,
                [one.change for one in own if one.change is not None],
                matrices,
                [self._strength.psnrs[one.level] for one in own],
                grey=bool(at.grey[0]),
            )
            cosines = self._cosines(own, crops_of(changed, matrices), self._fitted)
            limits = np.array([witness.threshold for witness in self._fitted]) - self._margin
            known = np.flatnonzero((cosines >= limits).any(axis=1)).tolist()
            todo = [n for n in known if self._harder(own[n], steps, n)]
        return changed

    @property
    def _num_steps(self) -> int:
        return self._strength.num_steps

    @property
    def _fitted(self) -> list[Witness]:
        return [witness for witness in self._witnesses if witness.fitted]

    def _shows(self, one: Followed, number: int, cosines: np.ndarray) -> bool:
        """Before its first and after its last detection a face may be gone: nobody knows it."""
        thresholds = [witness.threshold for witness in self._witnesses]
        shown = one.track.detected(number) or bool((cosines >= thresholds).any())
        if not shown:
            one.idle.add(number)
        return shown

    def _harder(self, one: Followed, steps: list[int], place: int) -> bool:
        """First all steps, then the next level; False: there is none."""
        if steps[place] < self._num_steps:
            steps[place] = self._num_steps
            return True
        if one.level + 1 < len(self._strength.psnrs):
            one.level += 1
            return True
        return False

    def _step(
        self,
        number: int,
        own: Sequence[Followed],
        crops: protection.Crops,
        steps: Sequence[int],
        todo: Sequence[int],
    ) -> None:
        """Finds the changes of the faces `todo`; those alike in what they need together."""
        kinds = sorted({(own[n].level, steps[n], own[n].change is None) for n in todo})
        for level, num_steps, new in kinds:
            alike = (level, num_steps, new)
            places = [
                n for n in todo if (own[n].level, steps[n], own[n].change is None) == alike
            ]
            faces = [own[n] for n in places]
            keys = [jax.random.fold_in(self._key, one.number) for one in faces]
            found = protection.changes_from(
                self._fitted,
                protection.Crops(*(part[places] for part in crops)),
                self._references(faces),
                None if new else np.stack([np.asarray(one.change) for one in faces]),
                psnr=self._strength.psnrs[level],
                keys=jnp.stack([jax.random.fold_in(key, number) for key in keys]),
                num_steps=num_steps,
            )
            self.num_gradients += num_steps * len(faces)
            for one, change in zip(faces, found, strict=True):
                one.change = change

    def _references(self, faces: Sequence[Followed]) -> list[np.ndarray]:
        return [
            np.stack([goal(one.references[place]) for one in faces])
            for place, witness in enumerate(self._witnesses)
            if witness.fitted
        ]

    def _cosines(
        self, own: Sequence[Followed], crops: np.ndarray, witnesses: Sequence[Witness]
    ) -> np.ndarray:
        """float64[N, number of witnesses]."""
        found = []
        for place, witness in enumerate(self._witnesses):
            if witness in witnesses:
                shown = zip(directions(witness.embedder, crops), own, strict=True)
                found.append([likeness(one, face.references[place]) for one, face in shown])
        return np.array(found).T


def _is_grey(pixels: np.ndarray) -> bool:
    red, green, blue = np.moveaxis(pixels, 2, 0)
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


class Judge:
    """Looks at every face of every frame of the written video.

    In the crop that it was changed in and, in every frame that is looked at, in the crop of the
    box that the detector finds now. The higher likeness counts.

    Args:
      witnesses: who judges.
      detector: finds faces.
      followed: the faces; they keep what is said of them.
      every: frames from one look of the detector to the next.
    """

    def __init__(
        self,
        witnesses: Sequence[Witness],
        detector: Detector,
        followed: Sequence[Followed],
        every: int,
    ):
        self._witnesses = witnesses
        self._detector = detector
        self._followed = followed
        self._every = every
        # Of faces that wait to be embedded: the face, its frame, its crops.
        self._waiting: list[tuple[Followed, int, np.ndarray]] = []
        self.num_face_frames = 0

    def see(self, number: int, before: np.ndarray, after: np.ndarray) -> None:
        """Takes a frame, uint8[H, W, 3], as it was and as it is now."""
        own = [one for one in self._followed if one.covers(number)]
        if not own:
            return
        self.num_face_frames += 1
        faces = [one.track.at(number) for one in own]
        found: list[Face] = []
        if number % self._every == 0:
            found = self._detector(after)
        places = [[crop_matrix(face)] for face in faces]
        for face in found:
            overlaps = [overlap(face.box, other.box) for other in faces]
            if max(overlaps) > _SAME:
                places[int(np.argmax(overlaps))].append(crop_matrix(face))
        for one, matrices in zip(own, places, strict=True):
            psnr = _psnr(before, after, matrices[0])
            one.lowest_psnr = min(one.lowest_psnr, psnr)
            one.sum_psnr += psnr
            self._waiting.append((one, number, crops_of(after, matrices)))
        if sum(len(crops) for _, _, crops in self._waiting) >= _BATCH:
            self.finish()

    def finish(self) -> None:
        """Says what is still to be said."""
        if not self._waiting:
            return
        crops = np.concatenate([crops for _, _, crops in self._waiting])
        shown = [directions(witness.embedder, crops) for witness in self._witnesses]
        thresholds = np.array([witness.threshold for witness in self._witnesses])
        first = 0
        for one, number, own in self._waiting:
            last = first + len(own)
            cosines = [
                float((rows[first:last] @ known.T).max())
                for rows, known in zip(shown, one.references, strict=True)
            ]
            one.judged(number, np.array(cosines), thresholds)
            first = last
        self._waiting.clear()


def _psnr(before: np.ndarray, after: np.ndarray, matrix: np.ndarray) -> float:
    """In dB, of the pixels that a face's change may touch."""
    ys, xs, inside = support(matrix, before.shape[:2])
    difference = after[ys, xs].astype(np.float64)[inside] - before[ys, xs][inside]
    error = float(np.mean(np.square(difference / 255))) if inside.any() else 0.0
    return -10 * math.log10(error) if error > 0 else 100.0
