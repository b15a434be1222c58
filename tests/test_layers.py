"""The layers of the house and its one-room libraries, read from the source of every module."""

import ast
from pathlib import Path

import planner
from tests.source import PACKAGE, files, imports, name, nodes, tree

# Lower lines never import higher ones; rooms on one line do not import each other.
LAYERS = (
    ("errors", "units", "strict_yaml"),
    ("case",),
    ("catalog", "hooks"),
    ("passes",),
    ("plans",),
    ("prediction", "run"),
    ("measure",),
    ("policy",),
    ("trials",),
    ("training", "tuning"),
    ("reporting",),
    ("zoo",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

# One room for every heavy library; the path is a file or a folder of the package.
ROOMS = {
    "networkx": "plans/graph.py",
    "optuna": "tuning/study.py",
    "torch.cuda": "run/devices/cuda.py",
    "lpips": "measure/lpips.py",
    "click": "cli",
    "rich": "cli",
}
FRAMEWORKS = {
    "torch", "diffusers", "torchao", "modelopt", "onnxruntime", "transformers", "cache_dit",
}  # fmt: skip


def home(file: Path) -> str:
    """Return the room that a file lies in."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def room(module: str) -> str | None:
    """Return the room of a planner module; None for the package itself and other libraries."""
    parts = module.split(".")
    return parts[1] if parts[0] == "planner" and len(parts) > 1 and parts[1] in LEVEL else None


def may_import(mine: str, theirs: str) -> bool:
    """Tell whether one room may import another; the bottom line may import among itself."""
    return mine == theirs or LEVEL[theirs] < LEVEL[mine] or LEVEL[mine] == LEVEL[theirs] == 0


def test_every_room_of_the_package_stands_on_a_layer() -> None:
    assert {home(file) for file in files()} - {"__init__"} <= set(LEVEL)


def test_a_higher_layer_and_a_neighbour_would_be_refused() -> None:
    assert may_import("plans", "passes") and may_import("cli", "tuning")
    assert not may_import("passes", "plans")
    assert not may_import("prediction", "run")
    assert not may_import("catalog", "hooks")


def test_no_file_imports_a_higher_layer_or_a_neighbour() -> None:
    wrong = [
        f"{name(file)}:{found.line} imports {found.module}"
        for file in files()
        if home(file) != "__init__"  # resolves the public names of all rooms, lazily
        for found in imports(file)
        if (theirs := room(found.module)) is not None and not may_import(home(file), theirs)
    ]
    assert not wrong, wrong


def test_heavy_libraries_stay_in_their_room() -> None:
    wrong = []
    for file in files():
        place = file.relative_to(PACKAGE).as_posix()
        for found in imports(file):
            for library, where in ROOMS.items():
                inside = place == where or place.startswith(f"{where}/")
                if f"{found.module}.".startswith(f"{library}.") and not inside:
                    wrong.append(f"{name(file)}:{found.line} imports {library}")
    assert not wrong, wrong


def test_torch_cuda_is_spoken_in_one_file() -> None:
    wrong = [
        f"{name(file)}:{node.lineno}"
        for file in files()
        if file.relative_to(PACKAGE).as_posix() != ROOMS["torch.cuda"]
        for node in nodes(file)
        if isinstance(node, ast.Attribute) and node.attr == "cuda"
        and isinstance(node.value, ast.Name) and node.value.id == "torch"
    ]  # fmt: skip
    assert not wrong, wrong


def test_pass_files_import_frameworks_inside_functions() -> None:
    wrong = [
        f"{name(file)}:{found.line} imports {found.module}"
        for file in files(PACKAGE / "passes")
        for found in imports(file)
        if found.at_top and found.module.split(".")[0] in FRAMEWORKS
    ]
    assert not wrong, wrong


def test_a_pass_file_never_sees_another_pass() -> None:
    shared = ("planner.passes.base", "planner.passes.needs")
    wrong = [
        f"{name(file)}:{found.line} sees {found.module}"
        for file in files(PACKAGE / "passes")
        if file.parent != PACKAGE / "passes"
        for found in imports(file)
        if found.module.startswith("planner.passes.") and not found.module.startswith(shared)
    ]
    assert not wrong, wrong


def test_the_policy_room_reads_plans_but_never_the_graph() -> None:
    searched = ("planner.plans.graph", "planner.plans.seeds", "planner.plans.rules")
    wrong = [
        f"{name(file)}:{found.line} imports {found.module}"
        for file in files(PACKAGE / "policy")
        for found in imports(file)
        if found.module.startswith(searched)
    ]
    assert not wrong, wrong


def test_package_files_hold_a_docstring_and_nothing_else() -> None:
    wrong = [
        name(file)
        for file in files()
        if file.name == "__init__.py" and file.parent != PACKAGE
        and (len(tree(file).body) != 1 or not ast.get_docstring(tree(file)))
    ]  # fmt: skip
    assert not wrong, wrong


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {file.parent for file in files()}
    assert [name(one) for one in sorted(folders) if not (one / "__init__.py").is_file()] == []


def test_no_room_bears_the_name_of_a_public_function() -> None:
    assert not {path.stem for path in PACKAGE.iterdir()} & set(planner.__all__)
