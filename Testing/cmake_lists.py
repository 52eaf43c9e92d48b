"""Keeps the lists of files in CMakeLists.txt: what is not listed is missing once the extension is installed.

``python Testing/cmake_lists.py`` rewrites them from the disk (``--check`` only says what is wrong). Only files that git
tracks, or would track, count.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOT_AT_RUN_TIME = ("Icons/", "Screenshots/", "CMakeLists.txt", "MedXAI.png")


def files_of_git(folder: str) -> list[str]:
    """Files under ``folder``, relative to it, that git tracks or does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(n.removeprefix(folder + "/") for n in set(names) if n and (ROOT / n).exists())


def wanted() -> dict[tuple[str, str], list[str]]:
    """For each (CMakeLists.txt, variable) the files it has to list."""
    lists = {}
    library = files_of_git("MedXAILib")
    lists["MedXAILib/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS"] = [n for n in library if n.endswith(".py")]
    lists["MedXAILib/CMakeLists.txt", "MODULE_PYTHON_RESOURCES"] = [
        n for n in library if not n.endswith((".py", "CMakeLists.txt"))
    ]
    lists["Resources/CMakeLists.txt", "MEDXAI_RESOURCES"] = [
        n for n in files_of_git("Resources") if not n.startswith(NOT_AT_RUN_TIME)
    ]
    for folder in sorted({n.split("/")[0] for n in files_of_git("MedXAI")}):
        names = [n for n in files_of_git(f"MedXAI/{folder}") if not n.startswith(("Testing/", "CMakeLists.txt"))]
        names = [n.replace(folder, "${MODULE_NAME}") for n in names]
        place = f"MedXAI/{folder}/CMakeLists.txt"
        lists[place, "MODULE_PYTHON_SCRIPTS"] = [n for n in names if n.endswith(".py")]
        lists[place, "MODULE_PYTHON_RESOURCES"] = [n for n in names if not n.endswith(".py")]
    return lists


def pattern(variable: str) -> re.Pattern:
    """The ``set(variable …)`` of a CMakeLists.txt."""
    return re.compile(rf"set\({variable}\n(.*?)  \)", re.DOTALL)


def listed(place: str, variable: str) -> list[str]:
    """The files that a CMakeLists.txt names now."""
    return pattern(variable).search((ROOT / place).read_text(encoding="utf-8")).group(1).split()


def main(arguments: list[str]) -> int:
    """Rewrite or check every list; the exit status is 1 when a check fails."""
    wrong = 0
    for (place, variable), names in wanted().items():
        if listed(place, variable) == names:
            continue
        wrong = 1
        print(f"{place}: {variable} {'is not what is on the disk' if '--check' in arguments else 'rewritten'}")
        if "--check" not in arguments:
            text = (ROOT / place).read_text(encoding="utf-8")
            body = f"set({variable}\n" + "".join(f"  {n}\n" for n in names) + "  )"
            text = pattern(variable).sub(lambda _: body, text)  # noqa: B023
            (ROOT / place).write_text(text, encoding="utf-8", newline="\n")
    return wrong if "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
