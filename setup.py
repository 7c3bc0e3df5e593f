"""Builds the native kernels with the package, where there is a C compiler; everything else is in pyproject.toml.

A package without kernels is whole: its nodes compute with torch.
"""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

NATIVE = Path("node", "native")


class BuildWithKernels(build_py):
    """Compiles into the folder that becomes the package; an editable install has its kernels in the checkout."""

    def run(self) -> None:
        super().run()
        build = runpy.run_path(str(NATIVE / "build.py"))
        folder = build["BUILT"] if self.editable_mode else Path(self.build_lib, NATIVE, "built")
        build["build"](folder, lambda line: print(line, file=sys.stderr))


class WheelForThisMachine(bdist_wheel):
    """With kernels in it a wheel is for one kind of machine, for any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        built = Path(self.get_finalized_command("build_py").build_lib, NATIVE, "built")
        if not any(built.glob("*.so")):
            return super().get_tag()
        self.root_is_pure = False
        platform = super().get_tag()[2]
        self.root_is_pure = True
        return "py3", "none", platform


setup(cmdclass={"build_py": BuildWithKernels, "bdist_wheel": WheelForThisMachine})
