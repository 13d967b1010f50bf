"""The house rules that can be checked: imports, sizes, and that looking costs little."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import fspmu

SOURCE = Path(fspmu.__file__).parent
MODULES = {".".join(("fspmu", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path for path in SOURCE.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """Return the fspmu modules that a file imports when it is loaded; imports inside functions do not count."""
    found = set()
    body = [node for node in ast.parse(path.read_text()).body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))]
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fspmu"):
            found |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else str(node.module) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("fspmu")}
    return found & MODULES.keys()


def test_no_import_cycles_not_even_through_a_package():
    graph = {}
    for name, path in MODULES.items():
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count("."))}
        graph[name] = imports_of(path) | (parents if path.name != "__init__.py" else set())
    for name, path in MODULES.items():
        own_package = name.rsplit(".", 1)[0]
        if path.name != "__init__.py":
            assert own_package == "fspmu" or own_package not in imports_of(path), f"{name} imports its own package"
            graph[name] -= {own_package}
    list(TopologicalSorter(graph).static_order())


def test_no_file_over_300_lines_and_no_function_over_60():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 300, f"{path.name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is too long"


def test_importing_fspmu_does_not_import_torch():
    code = "import fspmu, sys; print([m for m in ('torch', 'numpy', 'pandas', 'tyro') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_looking_at_results_does_not_import_torch():
    code = "import fspmu.report.figures, fspmu.report.tables, fspmu.results.store, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_public_names_are_what_they_say():
    for name in fspmu.__all__:
        assert getattr(fspmu, name) is not None
    assert callable(fspmu.load) and callable(fspmu.repair) and callable(fspmu.find_label_issues)
    assert callable(fspmu.repair), "the second access still gives the function, not a module"
