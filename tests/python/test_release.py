"""What a release says of itself: one version everywhere, and files that other services read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import groupnorm

ROOT = Path(__file__).parents[2]
(VERSION,) = re.findall(
    r'define GROUPNORM_VERSION "(.*)"', (ROOT / "include/groupnorm/version.h").read_text()
)


def test_every_file_has_the_version_of_the_header():
    header = (ROOT / "include/groupnorm/version.h").read_text()
    parts = re.findall(r"GROUPNORM_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", header)
    assert ".".join(parts) == VERSION == groupnorm.__version__
    port = json.loads((ROOT / "packaging/vcpkg/groupnorm/vcpkg.json").read_text())
    assert port["version"] == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == ["Unreleased", VERSION]


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_of_services_follow_their_schemas(schema, pattern):
    pytest.importorskip("check_jsonschema")
    files = sorted(ROOT.glob(pattern))
    assert files
    subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *files], check=True
    )


def test_workflows_call_scripts_that_exist():
    for workflow in (ROOT / ".github/workflows").glob("*.yml"):
        for script in re.findall(r"\bscripts/\w+", workflow.read_text()):
            assert (ROOT / script).is_file(), (workflow.name, script)
