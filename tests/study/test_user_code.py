"""Identity of user code: the source of the module and of all that it imports, found without running any of it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supermask.core.errors import UserError
from supermask.study.source_files import UserModuleNotFound
from supermask.study.user_code import check_function, code_sha256, import_function

SCORE = "def score(layer, rng):\n    return layer.w_final.abs()\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make an empty current folder; forget the modules that a test imports from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_identity_of_a_single_file_is_its_hash(folder: Path) -> None:
    text = f"import math\nimport torch\nimport numpy as np\nfrom supermask.core import criteria\n{SCORE}"
    write(folder, {"alone.py": text})
    assert code_sha256("alone:score") == code_sha256("alone.score") == hashlib.sha256(text.encode()).hexdigest()


FORMS = {
    "import": {"mod.py": "import helper\n", "helper.py": "A = 1\n"},
    "from import": {"mod.py": "from helper import f\n", "helper.py": "A = 1\n"},
    "star": {"mod.py": "from helper import *\n", "helper.py": "A = 1\n"},
    "in a function": {"mod.py": "def g():\n    import helper\n", "helper.py": "A = 1\n"},
    "guarded": {"mod.py": "try:\n    import helper\nexcept ImportError:\n    pass\n", "helper.py": "A = 1\n"},
    "by name": {"mod.py": "import importlib\nimportlib.import_module('helper')\n", "helper.py": "A = 1\n"},
    "transitive": {"mod.py": "import between\n", "between.py": "import helper\n", "helper.py": "A = 1\n"},
    "in a cycle": {"mod.py": "import helper\n", "helper.py": "import mod\nA = 1\n"},
    "relative": {"pkg/__init__.py": "", "pkg/mod.py": "from . import helper\n", "pkg/helper.py": "A = 1\n"},
    "relative name": {"pkg/__init__.py": "", "pkg/mod.py": "from .helper import f\n", "pkg/helper.py": "A = 1\n"},
    "two levels up": {
        "pkg/__init__.py": "",
        "pkg/sub/__init__.py": "",
        "pkg/sub/mod.py": "from ..helper import f\n",
        "pkg/helper.py": "A = 1\n",
    },
    "the package's init": {"pkg/__init__.py": "A = 1\n", "pkg/mod.py": ""},
    "what the init imports": {
        "pkg/__init__.py": "from . import helper\n",
        "pkg/mod.py": "",
        "pkg/helper.py": "A = 1\n",
    },
    "namespace package": {"space/helper.py": "A = 1\n", "mod.py": "import space.helper\n"},
    "submodule from a package": {
        "mod.py": "from pkg import helper\n",
        "pkg/__init__.py": "",
        "pkg/helper.py": "A = 1\n",
    },
    "names of __all__": {
        "mod.py": "from pkg import *\n",
        "pkg/__init__.py": "__all__ = ['helper']\n",
        "pkg/helper.py": "A = 1\n",
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_change_in_an_imported_module_changes_the_identity(folder: Path, form: str) -> None:
    files = FORMS[form]
    module = next(name for name in files if name.endswith("mod.py"))
    changed = next(name for name, text in files.items() if "A = 1" in text)
    write(folder, files | {module: files[module] + SCORE})
    name = module.removesuffix(".py").replace("/", ".") + ":score"
    before = code_sha256(name)
    assert code_sha256(name) == before
    write(folder, {changed: files[changed].replace("A = 1", "A = 2")})
    assert code_sha256(name) != before
    write(folder, {changed: files[changed], "unrelated.py": "B = 1\n"})
    assert code_sha256(name) == before


def test_the_identity_does_not_depend_on_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"mod.py": f"import helper\n{SCORE}", "helper.py": "A = 1\n"}
    write(folder / "a", files)
    write(folder / "b", files)
    hashes = set()
    for name in "ab":
        monkeypatch.chdir(folder / name)
        hashes.add(code_sha256("mod:score"))
    assert len(hashes) == 1


def test_no_code_is_run_to_find_the_identity(folder: Path) -> None:
    boom = "raise AssertionError('this code must not run')\n"
    write(
        folder, {"pkg/__init__.py": boom, "pkg/mod.py": f"{boom}from . import helper\n{SCORE}", "pkg/helper.py": boom}
    )
    check_function("pkg.mod:score", ("layer", "rng"))
    assert len(code_sha256("pkg.mod:score")) == 64
    assert not {"pkg", "pkg.mod", "pkg.helper"} & sys.modules.keys()


def test_a_helper_with_invalid_syntax_counts_by_its_bytes(folder: Path) -> None:
    write(folder, {"mod.py": f"import helper\n{SCORE}", "helper.py": "def f(:\n"})
    before = code_sha256("mod:score")
    write(folder, {"helper.py": "def g(:\n"})
    assert code_sha256("mod:score") != before


@pytest.mark.parametrize("name", ["nowhere:score", "pkg.nowhere:score"])
def test_a_missing_module_has_its_own_error(folder: Path, name: str) -> None:
    write(folder, {"pkg/__init__.py": ""})
    with pytest.raises(UserModuleNotFound, match="there is no module"):
        code_sha256(name)


def test_folders_and_compiled_files_have_no_source(folder: Path) -> None:
    (folder / "space").mkdir()
    with pytest.raises(UserError, match="'space' has no source text"):
        code_sha256("space:score")


@pytest.mark.parametrize(
    "text",
    [
        SCORE,
        "from elsewhere import score\n",
        "from elsewhere import *\n",
        "import functools\nscore = functools.partial(max, 1)\n",
        "if True:\n    def score(layer, rng): ...\n",
        "try:\n    import x\nexcept ImportError:\n    def score(layer, rng): ...\n",
        "@decorate\ndef score(*args): ...\n",
        "def __getattr__(name): ...\n",
        "async def score(layer, rng): ...\n",
    ],
)
def test_names_that_an_import_may_bind_are_accepted(folder: Path, text: str) -> None:
    write(folder, {"mod.py": text})
    check_function("mod:score", ("layer", "rng"))


def test_a_module_changed_after_its_import_is_refused(folder: Path) -> None:
    write(folder, {"mod.py": f"import helper_a\n{SCORE}", "helper_a.py": "A = 1\n"})
    assert import_function("mod:score").module_sha256 == code_sha256("mod:score")
    write(folder, {"helper_a.py": "A = 2\n"})
    with pytest.raises(UserError, match="'helper_a' was changed after this process imported it"):
        import_function("mod:score")


HELPER = {"lib/helper_c.py": "A = 1\n"}
EXTENDED = "import sys, os\nsys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), 'lib'))\n"


@pytest.mark.parametrize(
    "text",
    [f"{EXTENDED}import helper_c\n", "import importlib\nimportlib.import_module('lib' + '.helper_c')\n"],
    ids=["a folder added to sys.path", "a computed name"],
)
def test_imports_that_are_not_in_the_identity_are_refused(folder: Path, text: str) -> None:
    write(folder, HELPER | {"mod.py": text + SCORE})
    identity, folders = code_sha256("mod:score"), list(sys.path)
    for _ in range(2):  # The process goes on in a notebook: the second import is refused too.
        with pytest.raises(UserError) as refused:
            import_function("mod:score")
        assert f"helper_c' from {folder}/lib/helper_c.py" in str(refused.value)
        assert "put it beside mod.py, or add its folder to the environment variable PYTHONPATH" in str(refused.value)
    assert [entry for entry in sys.path if entry not in folders] in ([], [str(folder)])
    assert code_sha256("mod:score") == identity
    sys.path.append(str(folder / "lib"))
    if "importlib" not in text:
        assert import_function("mod:score").module_sha256 == code_sha256("mod:score") != identity


MADE_IN_MEMORY = """import sys, types

class Classes(types.ModuleType):
    __file__ = "_classes.py"

sys.modules["a_package.classes"] = Classes("a_package.classes")
"""


def test_modules_that_a_package_makes_in_memory_are_no_files_of_the_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch makes `torch.classes` and `torch.ops` so: a data function that imports PyTorch first was refused."""
    write(folder, {"mod.py": MADE_IN_MEMORY + SCORE})
    monkeypatch.setitem(sys.modules, "a_package.classes", None)
    del sys.modules["a_package.classes"]
    assert import_function("mod:score").module_sha256 == code_sha256("mod:score")


def test_a_folder_that_the_code_adds_does_not_change_the_identity(folder: Path) -> None:
    text = f"{EXTENDED}def score(layer, rng):\n    import helper_c\n"
    write(folder, HELPER | {"mod.py": text})
    identity = code_sha256("mod:score")
    assert import_function("mod:score").module_sha256 == code_sha256("mod:score") == identity


def test_a_module_imported_from_another_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        write(folder / name, {"mod.py": f"import helper_b\n{SCORE}", "helper_b.py": f"A = '{name}'\n"})
    monkeypatch.chdir(folder / "a")
    import_function("mod:score")
    monkeypatch.chdir(folder / "b")
    sys.path.remove(str(folder / "a"))
    with pytest.raises(UserError, match=r"'mod' was imported from .* before, but .* comes first now"):
        import_function("mod:score")
