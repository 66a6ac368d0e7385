"""Puts the modules of the folder `kernels` into the package metala_vision.kernels. All else stands in setup.cfg."""

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE = "metala_vision.kernels"


class BuildPy(build_py):
    """A package out of two folders: setup.cfg names the one with the modules, the other one has the `__init__.py`."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        if package == PACKAGE:
            modules.append((package, "__init__", f"{PACKAGE.replace('.', '/')}/__init__.py"))
        return modules


setup(cmdclass={"build_py": BuildPy})
