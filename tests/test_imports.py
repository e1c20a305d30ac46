"""What importing the package costs, and who may import whom; each check is also shown something it must object to."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy
import pytest

import precision_lab

ROOT = Path(precision_lab.__file__).parent
HEAVY = (
    *("matplotlib", "numba", "llvmlite", "hypothesis", "sklearn"),
    *("torch", "scipy", "pandas", "typer", "rich"),
)


# ---- the weight of the import ----


def heavy_modules_loaded_by(program: str, path: Path | None = None) -> list[str]:
    """Run a program in a fresh interpreter; return which of the heavy packages it loaded."""
    return loaded_by(program, HEAVY, path)


def loaded_by(program: str, names: tuple[str, ...], path: Path | None = None) -> list[str]:
    """Run a program in a fresh interpreter; return which of these modules it loaded."""
    report = f"import json, sys\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    search = [str(p) for p in (path, ROOT.parent) if p is not None]
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{report}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(search)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_the_import_is_light() -> None:
    assert heavy_modules_loaded_by("import precision_lab") == []


PARTS = ("numpy", "ml_dtypes", "precision_lab.training", "click")


@pytest.mark.parametrize(
    ("program", "loaded"),
    [
        ("import precision_lab", ()),
        ("import precision_lab; precision_lab.__version__, dir(precision_lab)", ()),
        ("from precision_lab.cli import main", ("click",)),
        (
            "import sys; sys.argv[1:] = ['--help']; from precision_lab.cli import app; app(standalone_mode=False)",
            ("click",),
        ),
        ("import precision_lab.numerics.inspection", ("numpy", "ml_dtypes")),
    ],
)
def test_what_is_loaded(program: str, loaded: tuple[str, ...]) -> None:
    """Names wait until they are asked for; a command brings what it needs."""
    assert loaded_by(program, (*HEAVY, *PARTS)) == [*loaded]


def test_one_number_needs_no_compiler() -> None:
    program = """if True:
        import sys
        sys.argv[1:] = ["inspect", "1e-7"]
        from precision_lab.cli import app
        app(standalone_mode=False)
    """
    assert loaded_by(program, HEAVY) == ["rich"]


def test_a_scan_loads_what_it_uses(tmp_path: Path) -> None:
    """A small file needs no compiler, and a scan none of the experiments; with numba, scipy would be loaded, too."""
    numpy.save(tmp_path / "x.npy", numpy.ones(1000, numpy.float32))
    program = f"""if True:
        import sys
        sys.argv[1:] = ["scan", {str(tmp_path / "x.npy")!r}]
        from precision_lab.cli import app
        app(standalone_mode=False)
    """
    unused = ("precision_lab.experiments", "precision_lab.training", "precision_lab.experiments.claims")
    assert loaded_by(program, (*HEAVY, *unused)) == ["rich"]


UPPER = tuple(f"precision_lab.{floor}" for floor in ("experiments", "presentation", "cli"))


def test_the_import_loads_no_upper_floor() -> None:
    assert loaded_by("import precision_lab", UPPER) == []


def test_a_notebook_that_asks_loads_them() -> None:
    program = "import precision_lab\nassert '<table>' in precision_lab.get_format('fp16')._repr_html_()"
    assert "precision_lab.presentation" in loaded_by(program, UPPER)


def test_looking_around_is_light() -> None:
    """Formats and histograms of nothing compile nothing."""
    program = """
        import precision_lab
        precision_lab.get_format("half").max
        precision_lab.ExponentHistogram.empty().conversion("fp16", 1024)
    """
    assert heavy_modules_loaded_by("if True:" + program) == []


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_import_is_noticed(name: str, tmp_path: Path) -> None:
    """A stand-in of that name, so that it need not be installed."""
    (tmp_path / f"{name}.py").write_text("")
    assert heavy_modules_loaded_by(f"import precision_lab, {name}", tmp_path) == [name]


def test_the_compiled_loops_are_noticed() -> None:
    """The real thing: the first rounding loads numba, and says so."""
    assert {"numba", "llvmlite"} <= set(heavy_modules_loaded_by("import precision_lab.numerics.kernels"))


# ---- the public names ----


def imported_names(source: str) -> list[tuple[str, str]]:
    """What type checkers are told: the names that `from ... import` binds below `if TYPE_CHECKING`, with the module."""
    return [
        (alias.asname or alias.name, str(node.module))
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def test_all_is_complete() -> None:
    source = (ROOT / "__init__.py").read_text()
    assert len(set(precision_lab.__all__)) == len(precision_lab.__all__)
    public = imported_names(source)
    assert sorted(name for name, _ in public) == sorted(precision_lab.__all__)
    assert dict(public) == {name: f"precision_lab.{module}" for name, module in precision_lab._MODULES.items()}
    # and nothing else is defined there
    assert not [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


@pytest.mark.parametrize("name", precision_lab.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(precision_lab, name)
    module = importlib.import_module(getattr(value, "__module__", "precision_lab"))
    assert name == "FORMATS" or getattr(module, name) is value


def test_imported_names_are_those_that_are_bound() -> None:
    source = "from x import y\nif TYPE_CHECKING:\n    from a import b, c as d\n    import e\n"
    assert imported_names(source) == [("b", "a"), ("d", "a")]


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="module 'precision_lab' has no attribute 'rond_to'"):
        precision_lab.rond_to  # type: ignore[attr-defined]  # noqa: B018
    assert {*precision_lab.__all__, "__version__"} <= {*dir(precision_lab)}


# ---- who imports whom ----

# a module imports floors of a smaller number, and its own
FLOORS = {
    **{"support": 1, "numerics": 2, "tensors": 3, "analysis": 4, "training": 5},
    **{"experiments": 6, "presentation": 7, "cli": 8},
}
PUBLIC = 8  # the names of precision_lab itself are for the command line, and for people
UPWARD = {("support.shown", "precision_lab.presentation.notebook.to_html")}  # what a notebook asks, when it asks
DOORS = ("cli", "torch", "testing", "__main__")  # for people; nothing else of the package uses them
PICKLES = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve")


@cache
def modules() -> dict[str, str]:
    """The source of every module of the package by its dotted name without the package's."""
    files = sorted(ROOT.rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text() for file in files}


@cache  # every rule asks it of every module
def imports(source: str, module: str = "") -> tuple[str, ...]:
    """Return the dotted names that a source imports, wherever in it: `from a import b` gives a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ["precision_lab", *module.split(".")][: -node.level] if node.level else []
            base = [*above, *filter(None, [node.module])]
            names += (".".join([*base, alias.name]) for alias in node.names)
    return tuple(names)


def top_level(source: str) -> set[str]:
    return {name.split(".")[0] for name in imports(source)}


def upward_imports(module: str, source: str) -> list[str]:
    """The imports of the package's own modules that a floor must not make."""
    floor = module.split(".")[0]
    wrong = []
    for name in imports(source, module):
        first, *rest = name.split(".")
        if first != "precision_lab" or floor not in FLOORS or (module, name) in UPWARD:
            continue
        target = rest[0] if rest else "__init__"
        if not (floor == "cli" if target in DOORS else FLOORS.get(target, PUBLIC) <= FLOORS[floor]):
            wrong.append(name)
    return wrong


def test_no_floor_imports_a_lower_one() -> None:
    assert {module: wrong for module, source in modules().items() if (wrong := upward_imports(module, source))} == {}


def test_the_door_that_leads_up_is_used() -> None:
    assert {(module, name) for module, name in UPWARD if name not in imports(modules()[module], module)} == set()


def test_no_room_is_too_large() -> None:
    """A module holds one thing."""
    large = {module for module, source in modules().items() if len(source.splitlines()) > 600}
    assert not large


def test_the_floors_are_those_of_the_package() -> None:
    found = {module.split(".")[0] for module in modules()} - {"__init__"}
    assert {"numerics", "analysis", "training", "experiments"} <= found <= {*FLOORS, *DOORS}


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("support.shown", "from precision_lab.presentation.notebook import to_html", False),
        ("support.shown", "from precision_lab.presentation.tables import Table", True),
        ("support.files", "from precision_lab.presentation.notebook import to_html", True),
        ("support.files", "from precision_lab.numerics.formats import FORMATS", True),
        ("numerics.formats", "from precision_lab.support.shown import Shown", False),
        ("numerics.formats", "from precision_lab.analysis.scan import scan", True),
        ("numerics.formats", "def f():\n    import precision_lab.training.loop", True),  # later is no excuse
        ("numerics.formats", "from precision_lab import training", True),
        ("numerics.formats", "from precision_lab import round_to", True),  # imports all floors
        ("numerics.formats", "import precision_lab", True),
        ("numerics.formats", "from ..analysis import scan", True),
        ("numerics.formats", "from .. import analysis", True),
        ("analysis.scan", "from precision_lab.experiments.underflow import run", True),
        ("training.loop", "from precision_lab.presentation import plots", True),
        ("experiments.underflow", "from precision_lab.presentation.plots import plot", True),
        ("presentation.plots", "from precision_lab.cli import main", True),
        ("presentation.plots", "from precision_lab.testing import casts", True),
        ("numerics.rounding", "from precision_lab.numerics.formats import FORMATS", False),
        ("numerics.rounding", "from . import kernels", False),
        ("analysis.scan", "from precision_lab.numerics import formats", False),
        ("analysis.scan", "import numpy, math", False),
        ("presentation.plots", "from precision_lab.experiments import underflow", False),
        ("presentation.report", "from precision_lab import __version__", True),
        ("cli", "from precision_lab import __version__", False),
        ("cli", "from precision_lab.presentation import plots\nfrom precision_lab.torch import capture", False),
        ("__init__", "from precision_lab.analysis.scan import scan", False),
        ("numerics.__init__", "from . import kernels", False),
        ("numerics.__init__", "from ..training import loop", True),
    ],
)
def test_the_check_of_the_floors(module: str, source: str, wrong: bool) -> None:
    assert bool(upward_imports(module, source)) == wrong


def test_only_the_kernels_import_the_compiler() -> None:
    importing = {module for module, source in modules().items() if {"numba", "llvmlite"} & top_level(source)}
    assert {module.rpartition(".")[0] for module in importing} == {"numerics.kernels"}


def test_nothing_imports_pickle() -> None:
    assert [module for module, source in modules().items() if top_level(source) & {*PICKLES}] == []


def test_only_testing_imports_hypothesis() -> None:
    importing = [module for module, source in modules().items() if "hypothesis" in top_level(source)]
    assert [module for module in importing if module.split(".")[0] != "testing"] == []


@pytest.mark.parametrize("module", ["cli", "testing", "testing.accumulators"])
def test_hypothesis_is_loaded_for_strategies_only(module: str) -> None:
    alone = f"import sys, precision_lab.{module}\nassert 'hypothesis' not in sys.modules"
    assert "hypothesis" in heavy_modules_loaded_by(f"{alone}\nimport precision_lab.testing.strategies")


def test_numerics_reference_imports_nothing_but_formats() -> None:
    """Or it would be no independent oracle."""
    own = {name for name in imports(modules()["numerics.reference"]) if name.startswith("precision_lab")}
    assert {name.rsplit(".", 1)[0] for name in own} == {"precision_lab.numerics.formats"}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from pickle import loads", "import os, pickle as p", "def f():\n    import pickle.x"],
)
def test_imports_are_seen_in_every_form(source: str) -> None:
    assert "pickle" in top_level(source)
    assert "pickle" not in top_level("pickle = 1  # import pickle\ns = 'import pickle'")
