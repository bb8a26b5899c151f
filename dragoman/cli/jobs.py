"""`dragoman jobs`."""

from pathlib import Path
from typing import Annotated

import typer

from dragoman.cli.exit_codes import ExitCode
from dragoman.cli.follow import describe_loss, follow, show_evaluation
from dragoman.cli.session import Session, command
from dragoman.models import Job
from dragoman.progress import duration

app = typer.Typer(help="Fine-tuning jobs: watch and steer them.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(help="such as job-02f991329c7d77e3", metavar="JOB")]


@command(app, "list")
def list_jobs(
    session: Session,
    *,
    status: Annotated[str | None, typer.Option(help="only those that are so")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", "-a", help="only of this one")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="the newest")] = 20,
) -> None:
    """List jobs, newest first."""
    jobs = session.client.jobs.list(status=status, adapter=adapter, limit=limit)
    if session.out.as_json:
        session.out.json(jobs)
        return
    session.out.table(
        ["job", "adapter", "version", "status", "done", "loss", "created"],
        [
            (
                job.id,
                job.adapter,
                job.adapter_version,
                job.status,
                f"{job.progress.percent:.0f}%",
                f"{job.loss_curve.train[-1].loss:.3f}" if job.loss_curve.train else None,
                job.created_at,
            )
            for job in jobs
        ],
    )


@command(app, "show")
def show(session: Session, job_id: JobId) -> None:
    """Show one job, with its loss and its evaluation."""
    job = session.client.jobs.get(job_id)
    if session.out.as_json:
        session.out.json(job)
    else:
        show_job(session, job)


def show_job(session: Session, job: Job) -> None:
    progress = job.progress
    steps = f"{progress.step} of {progress.total_steps} steps" if progress.total_steps else None
    eta = duration(progress.eta_seconds) if progress.eta_seconds and not job.ended else None
    speed = f"{progress.tokens_per_second:,.0f} tokens/s" if progress.tokens_per_second else None
    session.out.fields(
        [
            ("job", job.id),
            (
                "adapter",
                f"{job.adapter}@{job.adapter_version}" if job.adapter_version else job.adapter,
            ),
            ("status", job.status),
            ("error", f"{job.error.message} ({job.error.code})" if job.error else None),
            ("dataset", job.dataset_id),
            ("attempt", job.attempt),
            ("in queue", job.queue_position),
            ("created", job.created_at),
            ("started", job.started_at),
            ("finished", job.finished_at),
            ("progress", ", ".join(p for p in (steps, speed, eta and f"{eta} left") if p)),
            *(("note", warning) for warning in job.warnings),
        ]
    )
    if job.loss_curve.train:
        session.out.say(describe_loss(job))
    if job.evaluation:
        show_evaluation(session, job.evaluation, job.adapter_version)


@command(app, "follow")
def follow_job(session: Session, job_id: JobId) -> None:
    """Watch a job to its end; with --json, its events as JSON lines. Ctrl-C leaves it running."""
    session.client.jobs.get(job_id)  # a server that was never there is not waited for
    if not session.out.as_json:
        follow(session, job_id)
        return
    end = None
    for event in session.client.jobs.events(job_id):
        session.out.json({"event": event.kind, "data": event.data, "id": event.id})
        end = event
    if end is None or end.data.get("status") != "succeeded":
        raise typer.Exit(ExitCode.FAILED)


@command(app, "log")
def log(session: Session, job_id: JobId) -> None:
    """Print what the worker has logged, the newest 256 KiB."""
    text = session.client.jobs.log(job_id)
    if session.out.as_json:
        session.out.json({"log": text})
    elif text:
        session.out.say(text.removesuffix("\n"))


@command(app, "curve")
def curve(
    session: Session,
    job_id: JobId,
    output: Annotated[Path, typer.Option("--output", "-o", help="an SVG file")],
) -> None:
    """Save the loss curve as a picture."""
    output.write_text(session.client.jobs.curve_svg(job_id), encoding="utf-8")
    session.out.tell({"output": str(output)}, f"{output}")


@command(app, "cancel")
def cancel(
    session: Session,
    job_id: JobId,
    *,
    publish: Annotated[
        bool, typer.Option("--publish", help="judge and publish what it has learnt")
    ] = False,
) -> None:
    """Stop a job at its next step; nothing is published unless asked."""
    _tell_status(session, session.client.jobs.cancel(job_id, publish=publish))


@command(app, "pause")
def pause(session: Session, job_id: JobId) -> None:
    """Pause a job after a checkpoint, which frees the device."""
    _tell_status(session, session.client.jobs.pause(job_id))


@command(app, "resume")
def resume(session: Session, job_id: JobId) -> None:
    """Go on with a paused job."""
    _tell_status(session, session.client.jobs.resume(job_id))


@command(app, "delete")
def delete(session: Session, job_id: JobId) -> None:
    """Remove the record of a job that has ended; its adapter version stays."""
    session.client.jobs.delete(job_id)
    session.out.tell({"deleted": job_id}, f"{job_id} deleted")


def _tell_status(session: Session, job: Job) -> None:
    session.out.tell(job, f"{job.id} {job.status}")
