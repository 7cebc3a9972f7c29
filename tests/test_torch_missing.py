"""PyTorch is optional: nothing imports it but `sensorium.torch`, which says so where it is not installed."""

import subprocess
import sys

IMPORTS = """
import importlib, pathlib, sys
import sensorium
folder = pathlib.Path(sensorium.__file__).parent
names = [".".join(file.relative_to(folder).with_suffix("").parts) for file in folder.rglob("*.py")]
for name in names:
    if not name.startswith("torch."):
        importlib.import_module(f"sensorium.{name}".removesuffix(".__init__"))
print(len(names) > 30, "torch" in sys.modules)
"""

ABSENT = """
import sys
sys.modules["torch"] = None
import sensorium
try:
    import sensorium.torch
except sensorium.MissingExtraError as error:
    print(isinstance(error, ImportError), error)
"""


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_no_other_module_imports_torch():
    assert run(IMPORTS) == "True False"


def test_without_torch_the_error_says_what_to_install():
    want = "sensorium.torch needs PyTorch, which is not installed: pip install 'sensorium[torch]'"
    assert run(ABSENT) == f"True {want}"
