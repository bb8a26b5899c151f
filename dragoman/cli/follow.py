"""Following a job to its end, and what is said about it then."""

import shlex
from contextlib import closing

import typer

from dragoman.cli.exit_codes import ExitCode
from dragoman.cli.session import Session
from dragoman.errors import JobFailedError
from dragoman.models import Evaluation, Job, Scores
from dragoman.progress import sparkline, watcher

_NUM_SAMPLES = 2


def follow(session: Session, job_id: str, example: str | None = None) -> None:
    """Shows a job until it ends; Ctrl-C leaves it running. `example`: a text for the next command to type.

    Raises JobFailedError, or Exit for a job that was cancelled.
    """
    out, client = session.out, session.client
    try:
        with (
            watcher(not out.as_json, out.err) as show,
            closing(client.jobs.events(job_id)) as events,
        ):
            for event in events:
                show(event)
    except KeyboardInterrupt:
        out.note(
            f"left; the job goes on. See it again: {session.hint(f'jobs follow {job_id}')}; "
            f"stop it: {session.hint(f'jobs cancel {job_id}')}"
        )
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    job = client.jobs.get(job_id)
    if out.as_json:
        out.json(job)
    else:
        show_end(session, job, example)
    if job.status == "failed":
        raise JobFailedError(job)
    if job.status == "cancelled":
        raise typer.Exit(ExitCode.FAILED)


def show_end(session: Session, job: Job, example: str | None = None) -> None:
    """Loss, evaluation and the next command of a job that has ended."""
    out = session.out
    for warning in job.warnings:
        out.note(f"note: {warning}", style="yellow")
    if job.loss_curve.train:
        out.say(describe_loss(job))
    if job.evaluation:
        show_evaluation(session, job.evaluation, job.adapter_version)
    if job.status == "failed":
        out.note(f"what the worker said: {session.hint(f'jobs log {job.id}')}")
    if job.adapter_version is None:
        return
    ref = f"{job.adapter}@{job.adapter_version}"
    promoted = session.client.adapters.get(job.adapter).current == job.adapter_version
    out.say(f"published {ref}{', now current' if promoted else '; not made current'}", style="bold")
    if example is None and job.evaluation and job.evaluation.samples:
        example = job.evaluation.samples[0].source
    text = shlex.quote(" ".join((example or "...").split()))
    name = job.adapter if promoted else ref
    out.note("try it: " + session.hint(f"translate {text} --adapter {name}"))
    if not promoted:
        out.note("use it all the same: " + session.hint(f"adapters promote {ref}"))


def describe_loss(job: Job) -> str:
    losses = [point.loss for point in job.loss_curve.train]
    held_out = job.loss_curve.eval
    tail = f"; held-out {held_out[0].loss:.3f} -> {held_out[-1].loss:.3f}" if held_out else ""
    return f"loss {losses[0]:.3f} -> {losses[-1]:.3f}  {sparkline(losses)}{tail}"


def show_evaluation(session: Session, evaluation: Evaluation, version: int | None) -> None:
    """A row for each translator, the verdict, and the first samples."""
    out = session.out

    def row(name: str, scores: Scores) -> tuple[str, str, str]:
        return name, f"{scores.bleu:.1f}", f"{scores.chrf:.1f}"

    rows = [row("base model", evaluation.base)]
    if evaluation.current:
        rows.append(row("current version", evaluation.current))
    rows.append(row(f"new version {version or ''}".strip(), evaluation.candidate))
    out.table(["held-out rows" if not evaluation.rows else f"on {evaluation.rows} held-out rows",
               "BLEU", "chrF++"], rows)  # fmt: skip
    if evaluation.reason:
        out.say(evaluation.reason)
    for sample in evaluation.samples[:_NUM_SAMPLES]:
        out.fields(
            [
                ("  source", sample.source),
                ("  wanted", sample.reference),
                ("  before", sample.current or sample.base),
                ("  now", sample.candidate),
            ]
        )
