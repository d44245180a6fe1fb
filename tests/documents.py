"""The commands that the documents give, read from them, so that a test runs what a user would."""

import re

from tests.imports import ROOT


def commands(document: str, words: str, prompt: str = "") -> list[str]:
    """The commands with these words in the fenced blocks of docs/<document>, as one would paste them.

    prompt: what stands before a command in a block that also shows answers, such as `$ `.
    """
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
        command = ""
        for line in block.splitlines():
            if not command and prompt and not line.startswith(prompt):
                continue
            command += f"{line.removeprefix(prompt) if not command else line}\n"
            if not line.rstrip().endswith(("\\", "|")):
                found.append(command.strip())
                command = ""
    return [command for command in found if words in command]
