"""Builds the package from settings.ini, the one place that names versions and requirements."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
EXTRAS = ("dev", "gpu", "jax", "dask", "torch", "photos", "heic", "actions")
SUPPORTED = ("3.10", "3.11", "3.12", "3.13")
# Of these stored runs pip installs the answers, too: what the README speaks of. The answers of
# all others stay in the repository.
HEADLINES = (
    "budget_1m/*", "budget_2m/*", "budget_5m/*", "budget_31m/*", "defaults/*",
    "fashon_recipe/stride_2-*", "record/long-*",
)


class WithoutIndex(build_py):
    "Leaves out nbdev's index of private names, which only those who work on the project read."

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[1] != "_modidx"]


setup(
    cmdclass={"build_py": WithoutIndex},
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=settings["git_url"],
    author=settings["author"],
    author_email=settings["author_email"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Natural Language :: English",
        *(f"Programming Language :: Python :: {version}" for version in SUPPORTED),
    ],
    packages=find_packages(include=["fashion_nb", "fashion_nb.*"]),
    package_data={
        "fashion_nb": [
            *("templates/*", "pretrained/*"),
            *("results/*.json", "results/*/*.json", "results/teachers/*"),
            *(f"results/{runs}.npz" for runs in HEADLINES),
        ]
    },
    python_requires=f">={SUPPORTED[0]},<3.14",
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in EXTRAS},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_name']}={settings['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
