"""What is said in several places of the shipping is the same in each."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from release.check import PYTHONS
from release.wheels import VERSIONS, is_tried

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = {  # runners of wheels.yml: each builds for its own machine
    "ubuntu-24.04": "manylinux_2_28_x86_64",
    "ubuntu-24.04-arm": "manylinux_2_28_aarch64",
    "macos-15": "macosx_11_0_arm64",
    "macos-15-intel": "macosx_10_13_x86_64",
    "windows-2025": "win_amd64",
}


def lists(workflow: str, name: str) -> list[list[str]]:
    """The lists of this name in a workflow's matrices."""
    found = re.findall(rf"^ +{name}: \[(.*)\]$", (ROOT / ".github/workflows" / workflow).read_text(), re.MULTILINE)
    return [[word.strip(' "') for word in one.split(",")] for one in found]


def test_the_pythons_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    built = [name.removeprefix("cp3").removesuffix("-*") for name in project["tool"]["cibuildwheel"]["build"]]
    assert [int(minor) for minor in built] == list(PYTHONS) == list(VERSIONS)
    for tested in lists("ci.yml", "python"):
        assert tested == [f"3.{minor}" for minor in built]
    classifiers = [f"Programming Language :: Python :: 3.{minor}" for minor in built]
    assert [one for one in project["project"]["classifiers"] if ":: Python :: 3" in one] == classifiers
    assert project["project"]["requires-python"] == f">=3.{built[0]}"


def test_what_a_release_cannot_test_is_not_tested_here_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert [is_tried(version) for version in ("3.11", "3.14", "3.15")] == [True, True, False]
    monkeypatch.setattr("sys.platform", "win32")
    assert is_tried("3.15")


def test_a_wheel_of_each_runner_is_one_that_the_check_lets_pass() -> None:
    from release.check import TAGS

    [runners] = lists("wheels.yml", "os")
    assert set(runners) == set(TARGETS) == {runner for some in lists("ci.yml", "os") for runner in some}
    for tag in (*TARGETS.values(), "musllinux_1_2_x86_64", "musllinux_1_2_aarch64"):
        assert TAGS.fullmatch(f"fasthook-1.0-cp311-cp311-{tag}.whl")


def test_the_core_part_is_the_same_in_each_workflow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert (
        f"- run: {project['tool']['cibuildwheel']['test-command']}\n" in (ROOT / ".github/workflows/ci.yml").read_text()
    )


def test_each_file_that_names_packages_is_looked_after() -> None:
    files = [Path("pyproject.toml")]
    for name in ("requirements*.txt", "package.json"):
        files += [path.relative_to(ROOT) for path in ROOT.glob(f"bench/**/{name}") if "node_modules" not in path.parts]
    found = re.findall(r"directories: \[(.*)\]", (ROOT / ".github/dependabot.yml").read_text())
    watched = {place for some in found for place in some.split(", ")}
    assert watched == {f"/{file.parent.as_posix()}".rstrip(".") for file in files}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_pins_its_actions_and_has_no_rights_of_its_own(workflow: Path) -> None:
    text = workflow.read_text()
    for used in re.findall(r"uses: (.*)", text):
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used
    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)
    assert text.count("    permissions:\n") == text.count("    runs-on:")
