"""The rooms of the package: imports run one way only, and no two files import each other."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "deflect_hf"
# a room imports from its own floor's left and from the floors before, never from what comes after
ORDER = (
    ("errors", "files", "lazy"),
    ("spectral", "config"),
    ("raster", "models"),
    ("data",),
    ("tuners",),
    ("methods",),
    ("artifacts",),
    ("figures",),
    ("evaluation",),
    ("training",),
    ("inference",),
    ("hub",),
    ("benchmark",),
    ("api", "auto", "cli", "pipelines", "reference"),
)
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> dict[str, set[str]]:
    """What each module imports of the package, anywhere in the file, types included."""
    known = modules()
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                found[name] |= {
                    module for alias in node.names for module in (f"{base}.{alias.name}", base) if module in known
                }
    return found


def room(module: str) -> str:
    """``deflect_hf.data.folder`` -> ``data``; the package's own ``__init__`` has none."""
    return module.partition(".")[2].partition(".")[0]


def test_every_file_is_in_a_room() -> None:
    assert {room(module) for module in modules()} - {""} <= set(FLOOR)


def test_no_import_runs_up() -> None:
    up = [
        f"{module} -> {target}"
        for module, targets in sorted(imports().items())
        for target in sorted(targets)
        if room(module) and room(target) and FLOOR.get(room(target), 99) > FLOOR.get(room(module), 99)
    ]
    assert not up, "\n".join(up)


def test_no_two_files_import_each_other() -> None:
    graph = {module: {target for target in targets if target != module} for module, targets in imports().items()}
    circles = []
    for start in graph:
        seen, todo = set(), [target for target in graph[start] if not start.startswith(f"{target}.")]
        while todo:
            module = todo.pop()
            if module == start:
                circles.append(start)
                break
            if module not in seen and module.count(".") > 1:
                seen.add(module)
                todo.extend(target for target in graph[module] if not module.startswith(f"{target}."))
    assert not circles, circles


def test_no_file_is_long() -> None:
    long = [f"{path}: {count}" for path in PACKAGE.rglob("*.py") if (count := len(path.read_text().splitlines())) > 350]
    assert not long, long
