"""The pinned versions: what is lowest is what pyproject.toml says, and every system has one pin of each package."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TESTED = ("hypothesis", "pytest", "pytest-xdist", "safetensors", "scikit-learn", "setuptools")  # as in the Makefile
INDIRECT = ("pyparsing",)
SYSTEMS = [
    *[("Linux", "linux", machine) for machine in ("x86_64", "aarch64")],
    *[("Darwin", "darwin", machine) for machine in ("x86_64", "arm64")],
    *[("Windows", "win32", machine) for machine in ("AMD64", "ARM64")],
]


def requirements(lines: Iterable[str]) -> list[Requirement]:
    return [Requirement(text) for line in lines if (text := line.partition("#")[0].strip())]


def lowest(declared: Iterable[Requirement]) -> dict[str, str]:
    """The lower bound of each requirement, in three numbers."""
    found = {}
    for requirement in declared:
        bounds = [part.version for part in requirement.specifier if part.operator == ">="]
        if bounds:
            found[requirement.name] = ".".join([*bounds[0].split("."), "0", "0"][:3])
    return found


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    of_tests = [r for r in requirements([*extras["testing"], *extras["dev"]]) if r.name in TESTED]
    return [*requirements(project["dependencies"]), *of_tests]


def pins(name: str) -> list[Requirement]:
    return requirements((ROOT / name).read_text(encoding="utf-8").splitlines())


def pinned(wanted: Iterable[Requirement], environment: dict[str, str]) -> dict[str, list[str]]:
    """The versions that an environment is given, by package."""
    found: dict[str, list[str]] = {}
    for requirement in wanted:
        versions = found.setdefault(requirement.name.lower(), [])
        if requirement.marker is None or requirement.marker.evaluate(environment):
            versions.append(str(requirement.specifier))
    return found


def environment(system: str, platform: str, machine: str) -> dict[str, str]:
    default = {key: str(value) for key, value in default_environment().items()}
    return default | {"platform_system": system, "sys_platform": platform, "platform_machine": machine}


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    written = {r.name: str(r.specifier).removeprefix("==") for r in pins("constraints-lowest.txt")}
    assert {name: version for name, version in written.items() if name not in INDIRECT} == lowest(declared())


def test_a_bound_that_moved_is_seen() -> None:
    assert lowest(requirements(["numpy>=2.0", "rich>=13.9.1,<20", "torch"])) == {"numpy": "2.0.0", "rich": "13.9.1"}
    assert lowest(requirements(["numpy>=2.1"])) != {"numpy": "2.0.0"}


@pytest.mark.parametrize(("system", "platform", "machine"), SYSTEMS)
def test_every_package_has_one_pin_on_every_system(system: str, platform: str, machine: str) -> None:
    found = pinned(pins("constraints.txt"), environment(system, platform, machine))
    assert {name: versions for name, versions in found.items() if len(versions) != 1} == {}
    assert all(re.fullmatch(r"==[\w.]+", version) for versions in found.values() for version in versions)
    assert {r.name.lower() for r in declared()} <= {*found}


def test_a_package_with_two_pins_or_none_is_seen() -> None:
    mac = environment("Darwin", "darwin", "x86_64")
    lines = ["a==1", "a==2; platform_system == 'Darwin'", "b==1; platform_system != 'Darwin'"]
    assert pinned(requirements(lines), mac) == {"a": ["==1", "==2"], "b": []}


def test_the_classifiers_name_the_pythons_that_the_makefile_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    (tested,) = re.findall(r"^PYTHONS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [f"python{version}" for version in named] == tested.split()
    assert project["requires-python"] == f">={named[0]}"
