"""What the documents tell their readers to type works, and answers what they show.

Snippets are found by markdown-it-py, which knows fences from indented blocks. What runs them is our own: the libraries for
tests of documents compare printed text letter by letter, or not at all, and know Python alone or no output of a shell.
"""

import ast
import inspect
from operator import attrgetter

import pytest

import dragoman
from tests.docs.likeness import differences
from tests.docs.reader import Reader
from tests.docs.snippets import ROOT, Snippet, indented_blocks, read_snippets

pytestmark = pytest.mark.e2e

# The README's walk trains for a minute; here a step will do. What the command line prints of it is then another thing.
_SHORTER = {
    "--epochs 5": "--set training.max_steps=1 --set evaluation.holdout=4 --set evaluation.promote=always",
    '{"num_train_epochs":5}': '{"max_steps":1},"evaluation":{"holdout":0,"promote":"never"}',
}
# A fast machine would be through with the job that is to be paused before somebody who types can pause it.
_LONGER = {
    """-F 'config={"source": "en", "target": "en-x-jedi"}'""": """-F 'config={"source": "en", "target": "en-x-jedi", "training": {"num_train_epochs": 100}}'""",
}
_API, _CLIENT, _README = "docs/api.md", "docs/client.md", "README.md"


def of(*documents: str) -> list[Snippet]:
    return [snippet for document in documents for snippet in read_snippets(document)]


@pytest.mark.parametrize("snippet", of(_API), ids=str)
def test_the_guide_to_the_api(snippet: Snippet, reader: Reader) -> None:
    assert differences(snippet.shown, reader.run(snippet, _LONGER)) == []


def test_what_is_made_longer_is_there() -> None:
    assert [sum(long in snippet.code for snippet in of(_API)) for long in _LONGER] == [1]


@pytest.mark.parametrize("snippet", of(_README), ids=str)
def test_the_readmes_walk(snippet: Snippet, reader: Reader) -> None:
    output = reader.run(snippet, _SHORTER)
    if snippet.code.startswith("curl"):
        assert differences(snippet.shown, output) == []


def runs(snippet: Snippet) -> bool:
    """Not a list of calls, on things that are named but not there."""
    nodes = list(ast.walk(ast.parse(snippet.code.replace("…", "..."))))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    has_gap = any(isinstance(n, ast.Constant) and n.value in (..., "...") for n in nodes)
    return not has_gap and "id" not in names


def python_blocks() -> list[Snippet]:
    return [b for b in indented_blocks(_CLIENT) if not b.code.startswith("pip install")]


@pytest.mark.parametrize("snippet", list(filter(runs, python_blocks())), ids=str)
def test_the_clients_examples(snippet: Snippet, reader: Reader) -> None:
    folder = reader.folder
    (folder / "in.txt").write_text("I am tall.\nYou are old.\n", encoding="utf-8")
    pairs = (ROOT / "examples" / "yoda.csv").read_text(encoding="utf-8").splitlines()
    (folder / "pairs.csv").write_text("\n".join(["en,de", *pairs[1:11]]), encoding="utf-8")
    names = reader.names(_CLIENT)
    with dragoman.Client(timeout_s=240) as client:
        names |= {"dragoman": dragoman, "client": client, "texts": ["I am tall.", "You are old."]}
        reader.run(snippet)
    if "job" in names:
        assert names["job"].status == "succeeded"
    if "report" in names:
        assert len((folder / "out.txt").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("snippet", python_blocks(), ids=str)
def test_the_clients_calls_are_there(snippet: Snippet) -> None:
    """Each with the arguments that are shown."""
    tree = ast.parse(snippet.code.replace("…", "..."))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    with dragoman.Client() as client:
        for call in calls:
            root, _, method = ast.unparse(call.func).partition(".")
            if root == "client":
                keywords = {word.arg: None for word in call.keywords if word.arg}
                signature = inspect.signature(attrgetter(method)(client))
                # What both clients share is described by a function that still has its `self`.
                client_itself = ["self"] if "self" in signature.parameters else []
                signature.bind(*client_itself, *call.args, **keywords)
