"""`meshwright launch`: run a plan with the reference runtime, here or on a cluster; or write it for
another framework."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import Json
from launch.cli.terminal import note, say

if TYPE_CHECKING:
    from launch.recipe import Recipe
    from launch.scheduler.base import Scheduler

FIELDS = {"lr": "learning_rate", "clip": "clip_norm"}
"""Option -> field of the recipe, where their names differ."""


def run(
    ctx: typer.Context,
    plan: Annotated[
        Path | None, typer.Argument(help="plan.json", metavar="PLAN", show_default=False)
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="YAML of what to train with; options below win.", show_default="none"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text, a token per byte, or tokens (.npy, .bin).",
            show_default="sonnets of Shakespeare",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10**7, help="Timed optimizer steps.")] = 10,
    warmup: Annotated[int, typer.Option(min=2, max=10**7, help="Steps before them.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of weights and data order.")] = 0,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate of AdamW.")] = 3e-4,
    clip: Annotated[float, typer.Option(min=0.0, help="Largest gradient norm; 0: any.")] = 0.0,
    checkpoint_every: Annotated[
        int, typer.Option(min=0, max=10**7, help="Steps per checkpoint; 0: none.")
    ] = 0,
    rebalance_experts_every: Annotated[
        int, typer.Option(min=0, max=10**7, help="Steps per look at the routing; 0: none.")
    ] = 0,
    rebalance_experts_gain: Annotated[
        float, typer.Option(min=0.0, help="What a move must save, over what it costs.")
    ] = 1.0,
    weights: Annotated[
        Path | None, typer.Option(help="Hugging Face folder to start from.", show_default="random")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run or checkpoint to go on from.", show_default="none"),
    ] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, max=1000, help="Restarts after a failed rank.")
    ] = 0,
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Write a Chrome trace.")
    ] = False,
    record_routing: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of tokens to record experts of.")
    ] = 0.0,
    runs: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be started.")
    ] = False,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Make the run's folder with it.")
    ] = False,
    any_host: Annotated[
        bool, typer.Option("--any-host", help="Also where the profile is not of.")
    ] = False,
    on: Annotated[str, typer.Option(help="local, ssh, slurm or kubernetes.")] = "local",
    hosts: Annotated[
        Path | None,
        typer.Option(help="Hosts in the order of the cluster's nodes.", show_default="none"),
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="Interpreter on the hosts.", show_default="this one")
    ] = None,
    ssh_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="As in ssh_config.", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Slurm: a task per node or rank.", show_default="node"),
    ] = None,
    sbatch_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Slurm: partition=x, time=30.", show_default=False),
    ] = None,
    manifest: Annotated[
        str | None,
        typer.Option(help="Kubernetes: pytorchjob, jobset or trainjob.", show_default="pytorchjob"),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Kubernetes: image with meshwright.", show_default="none")
    ] = None,
    claim: Annotated[
        str | None, typer.Option(help="Kubernetes: claim of the runs' volume.", show_default="none")
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Kubernetes.", show_default="the current one")
    ] = None,
    framework: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Write it for megatron, megatron-bridge, torchtitan, torchtitan-0.2, deepspeed, "
            "accelerate or nanotron.",
            show_default="run it here",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="With --for: folder to write to.", show_default="print"),
    ] = None,
    status: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Say how a run is doing.", show_default=False),
    ] = None,
    stop: Annotated[
        Path | None, typer.Option(metavar="RUN", help="End a run.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a plan: writes runs/<plan-id>/ and trains in it."""
    if status is not None or stop is not None:
        _follow(ctx, status, stop, as_json)
        return
    if plan is None:
        ctx.fail("Missing argument 'PLAN'.")
    from launch.cli.launch_on import Where, scheduler_of

    scheduler = scheduler_of(
        Where(
            on=on, runs=runs, any_host=any_host, hosts=hosts, python=python,
            ssh_option=tuple(ssh_option or ()), tasks=tasks,
            sbatch_option=tuple(sbatch_option or ()), manifest=manifest, image=image, claim=claim,
            namespace=namespace,
        )
    )  # fmt: skip
    flags = {
        "data": str(data.absolute()) if data else "",
        "steps": steps,
        "warmup": warmup,
        "seed": seed,
        "lr": lr,
        "clip": clip,
        "checkpoint_every": checkpoint_every,
        "rebalance_experts_every": rebalance_experts_every,
        "rebalance_experts_gain": rebalance_experts_gain,
        "weights": str(weights.absolute()) if weights else "",
        "resume": str(resume.absolute()) if resume else "",
        "max_restarts": max_restarts,
        "trace": trace,
        "record_routing": record_routing,
    }
    how = _recipe(ctx, recipe, flags)
    if framework is not None:
        from launch.cli.launch_for import emit

        emit(plan, framework, how, scheduler, out, as_json=as_json)
    elif out is not None:
        ctx.fail("--out goes with --for")
    elif dry_run or prepare:
        _show(plan, runs, how, scheduler, prepare=prepare, as_json=as_json)
    else:
        _launch(plan, runs, how, scheduler, as_json=as_json)


def _recipe(ctx: typer.Context, path: Path | None, flags: dict[str, Any]) -> "Recipe":
    """What was typed wins over the file; a default does not."""
    from launch.recipe import read_recipe, recipe_of

    typed = {k for k in flags if getattr(ctx.get_parameter_source(k), "name", "") != "DEFAULT"}
    changes = {FIELDS.get(k, k): v for k, v in flags.items() if k in typed}
    return read_recipe(path, changes) if path else recipe_of(changes)


def _show(
    plan: Path, runs: Path, how: "Recipe", scheduler: "Scheduler", *, prepare: bool, as_json: bool
) -> None:
    """What would run, on stdout; with `prepare` in a run's folder too."""
    from launch.apply import checked, make_run_dir
    from launch.artifact import read_plan, write_atomic
    from launch.framework.native import check_runnable, places_of_nodes
    from launch.scheduler.base import Job
    from profiler.codec import canonical, to_plain

    content = read_plan(plan)
    check_runnable(content)
    if prepare:
        how = checked(content, how)
    where = runs.absolute() / content.id
    files = scheduler.files(Job(plan=content, recipe=how, run_dir=where))
    if prepare:
        where = make_run_dir(content, how, runs)
        files = scheduler.files(Job(plan=content, recipe=how, run_dir=where))
        for name, text in files.items():
            write_atomic(where / name, text)
    document = {
        "format_version": "1.0",
        "kind": "command",
        "scheduler": scheduler.name,
        "recipe": to_plain(how),
        "run_dir": str(where),
    }
    if scheduler.name == "local":
        from launch.framework.native import command

        what = command(content, where, how)
        document |= {"argv": list(what.argv), "env": dict(what.env)}
        shown = f"{what.text}\n"
    else:
        document["files"] = files
        shown = "".join(files.values())
    typer.echo(canonical(document) if as_json else shown, nl=False)
    if scheduler.name == "local" and "$HEAD_NODE" in shown:
        rank = " and NODE_RANK to its place" if "$NODE_RANK" in shown else ""
        places = places_of_nodes(content)
        note(f"Start it on every node, with HEAD_NODE set to the first one's name{rank}{places}")


def _launch(
    plan: Path, runs: Path, how: "Recipe", scheduler: "Scheduler", *, as_json: bool
) -> None:
    """Run it to the end."""
    from launch.apply import launch
    from launch.artifact import read_plan
    from profiler.codec import encode

    content = read_plan(plan)

    def on_line(line: str) -> None:
        if line.startswith(("step ", "goes on after ", "warning: ", "experts move ")):
            note(line)

    run_dir, observed = launch(content, runs, how, scheduler, on_line)
    if as_json:
        typer.echo(encode(observed), nl=False)
        return
    shown = run_dir.relative_to(Path.cwd()) if run_dir.is_relative_to(Path.cwd()) else run_dir
    if how.record_routing:
        say(f"\nTo see where tokens went:\n    meshwright experts show {shown}/routing.npz")
    losses = observed.losses
    if losses:
        say(f"\nLoss {losses[0]:.3f} -> {losses[-1]:.3f} in {len(losses)} steps")
    if observed.diverged_at is not None:
        say(f"The loss or a gradient is no number from step {observed.diverged_at} on")
    if content.chosen.estimate is None:
        say(f"\nWhat was observed: `{shown}/observed.json`")
    else:
        say(f"\nTo compare it with the plan:\n    meshwright verify {plan} {shown}/observed.json")


def _follow(ctx: typer.Context, status: Path | None, stop: Path | None, as_json: bool) -> None:
    """Look at a run, or end it; neither goes with what starts one."""
    from launch.cli.run_state import show

    name, run_dir = ("status", status) if stop is None else ("stop", stop)
    for other in ctx.params:
        source = getattr(ctx.get_parameter_source(other), "name", "DEFAULT")
        if other not in (name, "as_json") and source != "DEFAULT":
            shown = "PLAN" if other == "plan" else f"--{other.replace('_', '-')}"
            ctx.fail(f"--{name} RUN does not go with {shown}")
    assert run_dir is not None
    show(run_dir, end_first=name == "stop", as_json=as_json)
