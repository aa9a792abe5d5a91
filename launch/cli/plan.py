"""`meshwright plan`: choose the layout, show the table, save `plan.json`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from launch.cli import complete, replan
from launch.cli.exit import Exit
from launch.cli.options import Json, OptionalModel, default_precision, search_options
from launch.cli.routed import given_loads, read_routing, routed_plan
from launch.cli.terminal import bold, note, say
from profiler.errors import UserError

if TYPE_CHECKING:
    from planner.plan import Plan, SearchOptions
    from profiler.cluster import ClusterSpec
    from profiler.job import JobSpec
    from profiler.model import ModelSpec
    from profiler.profile import Profile
    from profiler.routing.trace import Routing

_WITH_FROM = {
    "lost": "--lost",
    "run_dir": "--run",
    "checkpoint_every": "--checkpoint-every",
    "restart_s": "--restart-s",
    "read_rate": "--read-rate",
}
Cluster = Annotated[
    str | None,
    typer.Option(
        "-c",
        "--cluster",
        help="Cluster YAML, or a name like h100-2x8.",
        autocompletion=complete.clusters,
    ),
]


def run(
    ctx: typer.Context,
    model: OptionalModel = None,
    cluster: Cluster = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="profile.json of `meshwright profile`.")
    ] = None,
    global_batch: Annotated[int, typer.Option(min=1, max=10**7, help="Sequences per step.")] = 256,
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Tokens per sequence [profile's, or 4096]."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="bf16, fp16, fp8, fp4, fp32 [profile's, or bf16 if the device has it]."),
    ] = None,
    software: Annotated[
        str | None,
        typer.Option(
            help="Training code to plan for where there is no profile: `list software` [pytorch]."
        ),
    ] = None,
    pin: Annotated[
        list[str] | None, typer.Option(help="Only these: tp=4,8 or split=3,2,3.")
    ] = None,
    forbid: Annotated[list[str] | None, typer.Option(help="None of these: pp=1.")] = None,
    objective: Annotated[
        str, typer.Option(help="What is to be least: step, cost (device time per token), devices.")
    ] = "step",
    devices: Annotated[
        str | None,
        typer.Option(help="Use so many devices, leave others idle: 16,32.", show_default="all"),
    ] = None,
    layout: Annotated[
        Path | None, typer.Option("--layout", help="Take this layout instead of searching.")
    ] = None,
    links: Annotated[
        Path | None,
        typer.Option(
            help="Measured links between hosts like the profiled one: plans for all of them.",
            show_default="none",
        ),
    ] = None,
    routing: Annotated[
        Path | None,
        typer.Option(
            help="Recorded routing: places the experts, and prices what that leaves uneven.",
            show_default="level",
        ),
    ] = None,
    redundant: Annotated[
        int, typer.Option(min=0, max=10**5, help="With --routing: replicas of experts per layer.")
    ] = 0,
    top: Annotated[int, typer.Option(min=0, max=1000, help="Alternatives to keep.")] = 5,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where to save.")] = Path("plan.json"),
    from_: replan.From = None,
    lost: replan.Lost = None,
    run_dir: replan.Run = None,
    checkpoint_every: replan.Every = None,
    restart_s: replan.Restart = None,
    read_rate: replan.ReadRate = None,
    as_json: Json = False,
) -> int:
    """Choose the parallel layout that trains MODEL fastest.

    With --from: plan again for what is there now, say what moves and what it costs. Exit 0: go on
    with the old plan; 4: restart with the new one; 3: nothing fits.
    """
    from launch.artifact import read_profile, write_atomic
    from planner.given import LayoutFile, plan_for
    from profiler.analytic import analytic_profile
    from profiler.catalog import resolve_cluster, resolve_model
    from profiler.codec import decode, encode, read_text

    _check_out(out)
    typed = _typed(ctx)
    if from_ is not None:
        asked = replan.Asked(
            plan=from_, lost=lost, run=run_dir, checkpoint_every=checkpoint_every,
            restart_s=restart_s, read_rate=read_rate,
        )  # fmt: skip
        return replan.run(asked, typed, typed.get("out"), as_json=as_json)
    if alone := [text for name, text in _WITH_FROM.items() if name in typed]:
        raise UserError(f"`{alone[0]}` goes with `--from`", hint="give the plan to plan again from")
    if model is None:
        ctx.fail("Missing option '-m' / '--model'.")
    options = search_options(pin or [], forbid or [], top, objective, devices)
    spec = resolve_model(model)
    measured = read_profile(profile) if profile else None
    by_nic = _on_hosts(links, measured) if links is not None else {}
    measured = next(iter(by_nic.values()), measured)
    given = resolve_cluster(cluster) if cluster else None
    target = _cluster(given, measured)
    job = _job(global_batch, seq_len, precision, target, measured)
    if measured and software:
        raise UserError(
            "`--software` has no say where there is a profile", hint="leave one of them out"
        )
    facts = measured or analytic_profile(spec, job, target, software)
    if redundant and (routing is None or layout is not None):
        raise UserError("`--redundant` goes with `--routing` and a search", hint="leave it out")
    routed = read_routing(routing, spec) if routing is not None else None
    if layout is None:
        tried = by_nic or {"": facts}
        plans = {
            nic: _searched(spec, job, on, options, routed, redundant) for nic, on in tried.items()
        }
        result = _best(plans)
    elif pin or forbid or devices or objective != "step":
        raise UserError(
            "`--layout` leaves nothing to `--pin`, `--forbid`, `--objective` or `--devices`",
            hint="leave `--layout` out to search",
        )
    else:
        given_layout = decode(LayoutFile, read_text(layout), str(layout))
        if routed is not None:
            facts = given_loads(facts, routed, job, given_layout)
        result = plan_for(spec, job, facts, given_layout, str(layout))
    text = encode(result)
    write_atomic(out, text)
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print(result)
    note(f"Saved the plan to: `{out}`")
    if not as_json and _runnable(result):
        say(f"\nTo run it:\n    meshwright launch {out}{_where(result)}")
    return Exit.OK


def _searched(
    spec: "ModelSpec", job: "JobSpec", facts: "Profile", options: "SearchOptions",
    routed: "Routing | None", redundant: int,
) -> "Plan":  # fmt: skip
    """The best layout, experts placed by recorded routing where there is some."""
    from planner.remedies import with_remedy
    from planner.search import make_plan

    try:
        if routed is None:
            return make_plan(spec, job, facts, options)
        return routed_plan(spec, job, facts, options, routed, redundant)
    except UserError as e:
        raise with_remedy(e, spec, job, facts, options) from None


def _typed(ctx: typer.Context) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {
        name: value
        for name, value in ctx.params.items()
        if getattr(ctx.get_parameter_source(name), "name", "") != "DEFAULT"
    }


def _runnable(plan: "Plan") -> bool:
    """Whether `launch` would take the plan."""
    from launch.framework.native import check_runnable

    try:
        check_runnable(plan)
    except UserError:
        return False
    return True


def _where(plan: "Plan") -> str:
    """What `launch` is to be told of several nodes."""
    from launch.framework.native import nodes_of

    return " --on ssh --hosts FILE    # or --on slurm" if len(set(nodes_of(plan))) > 1 else ""


def _check_out(out: Path) -> None:
    """What is no file cannot be written; said before the search."""
    from launch.artifact import is_folder

    if is_folder(out):
        raise UserError("it is a folder", hint="name a file like `plan.json`", place=str(out))


def _cluster(given: "ClusterSpec | None", measured: "Profile | None") -> "ClusterSpec":
    if measured is None:
        if given is None:
            raise UserError(
                "no cluster was given", hint="pass `-c h100-2x8`, a cluster file, or `--profile`"
            )
        return given
    if given is not None:
        ours, theirs = given.uniform, measured.cluster.uniform
        shape = (ours.device.name, ours.num_nodes, ours.devices_per_node)
        if shape != (theirs.device.name, theirs.num_nodes, theirs.devices_per_node):
            raise UserError(
                f"the profile is of {theirs.num_nodes} x {theirs.devices_per_node} "
                f"{theirs.device.name}, not of cluster `{given.name}`",
                hint="leave `--cluster` out to plan for the profiled one",
                kind="stale",
            )
    return measured.cluster


def _on_hosts(links: Path, measured: "Profile | None") -> "dict[str, Profile]":
    """By the NIC that each rank uses: of processes on hosts, which take one, each that was
    measured; else the empty name, for all that there are."""
    from planner.placed import on_hosts
    from profiler.link_assemble import of_each_nic
    from profiler.link_files import read_link_report, read_links

    if measured is None:
        raise UserError(
            "`--links` goes with a profile of measured blocks",
            hint="pass `--profile`; `meshwright map --plan` maps the ranks of any plan",
        )
    table, report = read_links(links), read_link_report(links)
    if report is None or not measured.cluster.uniform.device.is_host:
        return {"": on_hosts(measured, table)}
    return {nic: on_hosts(measured, of) for nic, of in of_each_nic(table, report).items()}


def _best(plans: "dict[str, Plan]") -> "Plan":
    """Of plans by NIC, the first that no other beats."""
    from planner.placed import with_interface

    def score(nic: str) -> tuple[int, float]:
        plan = plans[nic]
        number = plan.chosen.config.num_devices
        fewest = number if plan.options.objective == "devices" else 0
        paid = number if plan.options.objective == "cost" else 1
        return fewest, plan.chosen.cost.step_s * paid

    nic = min(plans, key=score)
    if len(plans) > 1:
        note(f"Of the NICs {', '.join(plans)} the plan is for {nic}")
    return with_interface(plans[nic], nic)


def _job(
    global_batch: int,
    seq_len: int | None,
    precision: str | None,
    cluster: "ClusterSpec",
    measured: "Profile | None",
) -> "JobSpec":
    from profiler.codec import build
    from profiler.job import JobSpec, Precision

    if precision is None:
        precision = measured.precision if measured else default_precision(cluster)
    elif precision not in (known := get_args(Precision)):
        raise UserError(
            f"`--precision {precision[:40]}` is not known", hint=f"one of {', '.join(known)}"
        )
    if seq_len is None:
        seq_len = measured.seq_len if measured else 4096
    tree = {"global_batch": global_batch, "seq_len": seq_len, "precision": precision}
    return build(JobSpec, tree, "command line")


def _print(plan: "Plan") -> None:
    from launch.cli import render

    say(bold(render.heading(plan)))
    say(f"\n{render.considered(plan)}\n")
    for line in render.picture(plan):
        say(line)
    if plan.chosen.estimate is not None:
        say(render.proof(plan))
