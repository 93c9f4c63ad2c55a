"""The order of the packages, and limits that keep the code readable."""

import ast
import collections
import graphlib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
# Read from the top: each may import only from those below it.
LAYERS = (
    "videos",
    "photos",
    "transfer",
    "reports",
    "evaluation",
    "recognisers",
    "models",
    "data",
    "runs",
    "attacks",
    "objectives",
    "transforms",
    "metrics",
    "devices",
    {"arrays", "checks", "pixels"},
    "types",
    "errors",
)
COMMANDS = (
    "aggregate",
    "attack",
    "attributes",
    "benchmark",
    "compare",
    "growth",
    "protect",
    "scaling",
    "sweep",
    "train",
    "transfer",
    "webapp",
)
MOST_PARAMETERS = 8
MOST_LINES = 400


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("deid_jax", "experiments", cache_dir=None)


def test_packages_import_downwards_only(graph):
    layers = ({layer} if isinstance(layer, str) else layer for layer in LAYERS)
    named = set().union(*layers)
    found = {path.stem for path in (ROOT / "deid_jax").iterdir() if path.stem[0] != "_"}
    assert found == named
    broken = graph.find_illegal_dependencies_for_layers(layers=LAYERS, containers={"deid_jax"})
    assert not {(d.importer, d.imported) for d in broken}


def test_no_circles(graph):
    imports = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    # A package's face hands on the names of its modules, which do not import it.
    graphlib.TopologicalSorter(imports).prepare()


def test_experiments_holds_commands_and_their_parts(graph):
    entries = {p.name for p in (ROOT / "experiments").iterdir() if p.name != "__pycache__"}
    commands = {f"{name}.py" for name in COMMANDS}
    folders = {name for name in entries if name.startswith("_") and name != "__init__.py"}
    allowed = {"__init__.py", "notebooks", "pictures", "RESULTS.md", "GUIDE.md"}
    assert commands <= entries <= commands | folders | allowed
    for name in COMMANDS:
        imported = graph.find_modules_directly_imported_by(f"experiments.{name}")
        assert not imported & {f"experiments.{other}" for other in COMMANDS}


def test_files_and_functions_are_small():
    files = [p for name in ("deid_jax", "experiments") for p in (ROOT / name).rglob("*.py")]
    texts = {path.relative_to(ROOT): path.read_text("utf-8") for path in files}
    assert not [f"{path}" for path, text in texts.items() if text.count("\n") > MOST_LINES]
    functions = [
        (path, node)
        for path, text in texts.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    wide = [f"{path}: {f.name}" for path, f in functions if _parameters(f) > MOST_PARAMETERS]
    assert not wide


def _parameters(function):
    taken = function.args
    names = [argument.arg for argument in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
    return len(set(names) - {"self", "cls"})


# Names that many modules have because they play the same role.
ROLES = {"array_shapes", "convert", "load", "run"}


def test_names_are_unique():
    """No two modules, classes or functions share a name and mean different things."""
    found = collections.defaultdict(set)
    for name in ("deid_jax", "experiments"):
        for path in (ROOT / name).rglob("*.py"):
            where = str(path.relative_to(ROOT))
            if path.stem != "__init__" and path.parent.name != "experiments":
                found[f"module {path.stem}"].add(where)
            for node in ast.parse(path.read_text("utf-8")).body:
                defines = isinstance(node, ast.FunctionDef | ast.ClassDef)
                if defines and not node.name.startswith("_") and node.name not in ROLES:
                    found[node.name].add(where)
    assert not {name: sorted(paths) for name, paths in found.items() if len(paths) > 1}
