"""Put the program folders into the wheel, inside the package (docs/architecture.md).

Everything else that setuptools must know is in pyproject.toml.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("launch", "data_prep", "inference", "configs")


class BuildWithPrograms(build_py):
    """Copy the modules of the program folders to `alignuser_jax/_programs/`."""

    def run(self):
        """Build the package, then add the programs to it."""
        super().run()
        if self.editable_mode:
            return  # the checkout itself is on the path, with the folders beside the package
        for folder in FOLDERS:
            target = Path(self.build_lib, "alignuser_jax", "_programs", folder)
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(Path(folder).glob("*.py")):
                self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": BuildWithPrograms})
