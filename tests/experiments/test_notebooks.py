"""The notebooks run from top to bottom, and are stored as they should be."""

import ast
import base64
import functools
import importlib.util
import io
import os
import re
import sys
import types

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from PIL import Image

from tests.experiments.conftest import REPOSITORY, SIZE, write_faces

FOLDER = REPOSITORY / "experiments/notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
# What a notebook may import: this project and what Colab has.
ALLOWED = {"deid_jax", "experiments", "IPython", "jax", "numpy", "google.colab"}
# The tiny data set in place of what the parameters cell says.
TINY = {"folder": "faces", "image_size": SIZE, "max_images": 3}
VALUES = {
    "first_attack": {"num_steps": 3, "penalty_weights": "1,0.1"},
    "lambda_sweep": {
        "penalty_weights": "1,0.1",
        "epsilons": "0.1",
        "blur_sigmas": "0.1",
        "step_counts": "2,3",
    },
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters_cell(notebook):
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    assert cell.cell_type == "code"
    return cell


def set_parameters(notebook, values):
    """Writes other values into the parameters cell, as a user does."""
    cell = parameters_cell(notebook)
    for name, value in values.items():
        pattern = rf"^{name} = .*?(?=  # @param)"
        cell.source, count = re.subn(
            pattern, f"{name} = {value!r}", cell.source, flags=re.MULTILINE
        )
        assert count == 1, name


def imports_of(cell):
    """The modules that a cell imports, each with the names imported from it."""
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(cell.source))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]


def text_of(cell):
    """What a cell printed, on either stream, and the text of what it displayed."""
    return "".join(
        output.text if output.output_type == "stream" else output.data.get("text/plain", "")
        for output in cell.outputs
    )


def images_of(cell):
    """Media type -> the files that a cell displayed."""
    found = {}
    for output in cell.outputs:
        for kind, content in output.get("data", {}).items():
            if kind.startswith("image/"):
                found.setdefault(kind, []).append(base64.b64decode(content))
    return found


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """name -> (the executed notebook's cells by id, its output folder), run when asked.

    Both run in one folder, so that whichever is second finds the recogniser.
    """
    folder = tmp_path_factory.mktemp("notebooks")
    write_faces(folder / "faces")
    environment = dict(
        os.environ,
        PYTHONPATH=str(REPOSITORY),
        JAX_PLATFORMS="cpu",
        IPYTHONDIR=str(folder / ".ipython"),
    )

    @functools.cache
    def execute(name):
        notebook = read(name)
        set_parameters(notebook, TINY | {"output_dir": name} | VALUES[name])
        client = NotebookClient(
            notebook, timeout=240, resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env=environment)  # Raises what a cell raises.
        return {cell.id: cell for cell in notebook.cells}, folder / name

    return execute


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_stored_clean(name):
    path = FOLDER / f"{name}.ipynb"
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert nbformat.writes(notebook) + "\n" == path.read_text("utf-8")
    for cell in code_cells(notebook):
        assert not cell.outputs
        assert cell.execution_count is None
    first, second, *_ = code_cells(notebook)
    assert (first.id, second.id) == ("install", "accelerator")
    assert "%pip install" in first.source
    assert not re.search(r"https?://\w", "".join(cell.source for cell in notebook.cells))
    parameters = ast.parse(parameters_cell(notebook).source).body
    assert all(isinstance(line, ast.Assign) for line in parameters)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_imports_this_project_and_what_colab_has(name):
    allowed = ALLOWED | sys.stdlib_module_names
    found = [entry for cell in code_cells(read(name)) for entry in imports_of(cell)]
    assert "experiments" in {module for module, _ in found}
    for module, names in found:
        root = module.partition(".")[0]
        assert {module, root} & allowed, module
        if root in ("deid_jax", "experiments"):
            for entry in names:
                inside = hasattr(importlib.import_module(module), entry)
                assert inside or importlib.util.find_spec(f"{module}.{entry}"), entry


@pytest.mark.parametrize(
    ("repository", "is_clone", "expected"),
    [
        ("https://host/deid_jax", True, 'install --quiet "git+{repository}"'),
        ("", True, 'install --quiet "{clone}"'),
        (str(REPOSITORY), False, 'install --quiet "{clone}"'),
    ],
    ids=["address", "clone", "folder"],
)
def test_install_cell_finds_the_package(tmp_path, monkeypatch, repository, is_clone, expected):
    monkeypatch.chdir(FOLDER if is_clone else tmp_path)
    calls, names = run_install_cell(repository, monkeypatch)
    assert calls == [("pip", expected)]
    if "clone" in expected:
        assert names["clone"] == REPOSITORY.resolve()


def test_install_cell_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no clone of it: give its address"):
        run_install_cell("nowhere", monkeypatch)


def run_install_cell(repository, monkeypatch):
    """Runs the cell where deid_jax is not installed; returns magics called and variables."""
    source, other = (code_cells(read(name))[0].source for name in NAMES)
    assert source == other
    source = source.replace('repository = ""', f"repository = {repository!r}")
    calls = []
    shell = types.SimpleNamespace(run_line_magic=lambda *call: calls.append(call))
    names = {"get_ipython": lambda: shell}
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda module: None)
        exec(TransformerManager().transform_cell(source), names)
    return calls, names


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_shows_sheet_and_frontier(executed, name):
    cells, out = executed(name)
    assert text_of(cells["install"]) == "deid_jax is installed.\n"
    assert re.match(r"CPU: \d+ x \w+\nno accelerator", text_of(cells["accelerator"]))
    assert "misclassified (MR)" in text_of(cells["attack"])
    (sheet,) = images_of(cells["sheet"])["image/png"]
    assert sheet == (out / "attack/sheet.png").read_bytes()
    for cell in cells.values():
        for files in images_of(cell).values() if cell.cell_type == "code" else ():
            for file in files:
                with Image.open(io.BytesIO(file)) as image:
                    assert min(image.size) > 100
    assert len(list((out / "attack/images").rglob("*.png"))) == 3
    assert text_of(cells["download"]) == f"All results: {name}\n"
    assert [path.name for path in (out.parent / "checkpoints").iterdir()] == [
        "model_a-folder-faces-16px-seed0"
    ]


@pytest.mark.slow
def test_first_attack_shows_how_a_face_comes_about(executed):
    cells, out = executed("first_attack")
    shown = images_of(cells["evolution"])
    assert shown == {
        "image/png": [(out / "from_noise/evolution.png").read_bytes()],
        "image/gif": [(out / "from_noise/evolution.gif").read_bytes()],
    }
    (frontier,) = images_of(cells["sweep"])["image/png"]
    assert frontier == (out / "sweep/frontier.png").read_bytes()
    assert len((out / "sweep/sweep.csv").read_text().splitlines()) == 1 + 2


@pytest.mark.slow
def test_sweep_chooses_and_compares(executed):
    cells, out = executed("lambda_sweep")
    (frontier,) = images_of(cells["frontier"])["image/png"]
    assert frontier == (out / "pfgvm/frontier.png").read_bytes()
    (both,) = images_of(cells["frontiers"])["image/png"]
    assert both not in (frontier, (out / "baselines/frontier.png").read_bytes())
    assert len((out / "pfgvm/sweep.csv").read_text().splitlines()) == 1 + 2 * 2
    assert re.search(r"'penalty_weight': [\d.]+.*misclassified", text_of(cells["choice"]))
    assert text_of(cells["run-compiled"]).startswith("L2: [")
    assert "P-FGVM" in text_of(cells["table"])
    assert (out / "comparison/report.html").is_file()
