"""Somebody who follows a document to the letter, in a folder that holds examples/, with a service running."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.docs.likeness import matching_ids
from tests.docs.snippets import ROOT, Snippet

_TIMEOUT_S = 600


class Reader:
    """`folder` is the working directory. Python of one document shares its names, as in one session."""

    def __init__(self, url: str, folder: Path) -> None:
        self._netloc = urlsplit(url).netloc
        self.folder = folder
        self._names: dict[str, dict[str, Any]] = {}
        self._ids: dict[str, str] = {}  # in the documents -> here
        (folder / "examples").symlink_to(ROOT / "examples")

    def names(self, document: str) -> dict[str, Any]:
        return self._names.setdefault(document, {})

    def run(self, snippet: Snippet, instead: dict[str, str] | None = None) -> str:
        """Its output. `instead`: what is to be replaced in it. Raises what Python raises, or CalledProcessError."""
        code = snippet.code
        for written, typed in (instead or {}).items():
            code = code.replace(written, typed)
        code = re.sub(r"(localhost|127\.0\.0\.1):8000", self._netloc, code)
        for shown, real in self._ids.items():
            code = code.replace(shown, real)
        output = self._shell(code) if snippet.language == "sh" else self._python(snippet, code)
        self._ids |= matching_ids(snippet.shown, output)
        return output

    def _shell(self, code: str) -> str:
        command = code.replace(".venv/bin/dragoman", f"'{sys.executable}' -m dragoman.cli")
        # curl ends well whatever the server answers; what is answered is compared.
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=os.environ | {"DRAGOMAN_URL": f"http://{self._netloc}", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # as a terminal shows both
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\nended with {done.returncode}\n{done.stdout}"
        return done.stdout

    def _python(self, snippet: Snippet, code: str) -> str:
        printed = io.StringIO()
        # Lines are those of the document in a traceback.
        program = compile("\n" * (snippet.line - 1) + code, snippet.document, "exec")
        with contextlib.redirect_stdout(printed), contextlib.chdir(self.folder):
            exec(program, self.names(snippet.document))
        return printed.getvalue()
