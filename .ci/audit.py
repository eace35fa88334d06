"""Looks for known vulnerabilities: ``audit.py PIP_AUDIT REQUIREMENTS…``.

Exit code 0: none. 1: some, or something could not be looked up. 3: the database of vulnerabilities
was out of reach, so that nothing was.
"""

from __future__ import annotations

import json
import subprocess
import sys

UNREACHABLE = 3


def audit(program: str, requirements: str) -> int:
    """Look one file up, and say what came of it."""
    command = [program, "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    ran = subprocess.run(  # noqa: S603  our own command
        [*command, "--requirement", requirements], capture_output=True, text=True, check=False
    )
    try:
        found = json.loads(ran.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (ran.stderr.strip() or "no output").splitlines()[-1]
        return _nothing(requirements, last)
    skipped = [each for each in found if "skip_reason" in each]
    if len(skipped) == len(found):
        why = skipped[0]["skip_reason"] if skipped else "the file names no package"
        return _nothing(requirements, why)
    for each in skipped:
        print(f"{requirements}: {each['name']} was not looked up: {each['skip_reason']}")
    bad = [(each, fault) for each in found for fault in each.get("vulns", ())]
    for each, fault in bad:
        fixed = ", ".join(fault.get("fix_versions", ())) or "no version"
        print(f"{requirements}: {each['name']} {each['version']}: {fault['id']}, fixed in {fixed}")
    looked_up = len(found) - len(skipped)
    print(f"{requirements}: {len(bad)} known vulnerabilities in {looked_up} packages")
    return 1 if bad or skipped or ran.returncode else 0


def _nothing(requirements: str, why: str) -> int:
    print(
        f"{requirements}: NOTHING WAS LOOKED UP. The database of vulnerabilities is out of reach, "
        f"so this says nothing about the packages: {why}"
    )
    return UNREACHABLE


if __name__ == "__main__":
    sys.exit(max(audit(sys.argv[1], requirements) for requirements in sys.argv[2:]))
