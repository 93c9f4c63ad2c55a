"""The public interface keeps the house rules."""

import inspect
import subprocess
import sys

import pytest

import deid_jax
from deid_jax.attacks import METHODS, baselines, budgets
from deid_jax.data import DATASETS
from deid_jax.metrics import distortion, verification
from deid_jax.models import MODELS
from deid_jax.objectives import classification, embeddings
from deid_jax.transforms import processing, random_transforms

MODULES = (
    distortion,
    classification,
    baselines,
    embeddings,
    random_transforms,
    verification,
    processing,
    budgets,
)
PUBLIC = [getattr(deid_jax, name) for name in deid_jax.__all__]
FUNCTIONS = [thing for thing in PUBLIC if inspect.isfunction(thing)]
FUNCTIONS += [
    function
    for module in MODULES
    for name, function in vars(module).items()
    if inspect.isfunction(function)
    and function.__module__ == module.__name__
    and not name.startswith("_")
]


def test_all_is_sorted_and_complete():
    names = [
        n
        for n, thing in vars(deid_jax).items()
        if not n.startswith("_") and not inspect.ismodule(thing)
    ]
    assert set(names) <= set(deid_jax.__all__)
    assert len(set(deid_jax.__all__)) == len(deid_jax.__all__)


@pytest.mark.parametrize("thing", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_public_functions_are_documented_and_typed(thing):
    assert inspect.getdoc(thing)
    signature = inspect.signature(thing)
    assert signature.return_annotation is not inspect.Signature.empty
    for name, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty
        assert name != "rng"


@pytest.mark.parametrize("name", METHODS)
def test_methods_share_one_signature(name):
    """Images before settings, `key` for randomness, options keyword-only."""
    parameters = inspect.signature(METHODS[name].function).parameters
    assert list(parameters) == ["objective", "images", "config", "key", "initial"]
    assert parameters["initial"].kind is inspect.Parameter.KEYWORD_ONLY
    assert METHODS[name].config.__doc__.startswith("Settings of ")


@pytest.mark.parametrize("target", [*MODELS.values(), *DATASETS.values()])
def test_tables_name_what_exists(target):
    module, attribute = target.split(":")
    __import__(module)
    assert inspect.getdoc(getattr(sys.modules[module], attribute))


def test_import_leaves_the_heavy_packages_alone():
    code = "import sys, deid_jax; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {
        "flax",
        "optax",
        "orbax",
        "grain",
        "tensorflow",
        "tensorflow_datasets",
        "matplotlib",
    }
    heavy |= {"torch", "PIL", "dm_pix", "rich", "absl", "chex"}
    assert not loaded & heavy
