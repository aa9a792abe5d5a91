"""`meshwright profile`: measure blocks and links, or compute them from the catalogue."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import Json, OptionalModel, parse_counts
from launch.cli.plan import Cluster
from launch.cli.terminal import STATE, Progress, note, say
from profiler.errors import UserError

if TYPE_CHECKING:
    from profiler.model import ModelSpec
    from profiler.profile import Profile


def run(
    model: OptionalModel = None,
    nproc: Annotated[int, typer.Option(min=1, max=1024, help="Processes to measure with.")] = 4,
    seq_len: Annotated[int, typer.Option(min=1, help="Tokens per sequence.")] = 128,
    micro_batches: Annotated[str, typer.Option(help="Micro-batch sizes to measure.")] = "1,2,4",
    tp: Annotated[
        str | None, typer.Option(help="Tensor-parallel degrees.", show_default="all that divide")
    ] = None,
    analytic: Annotated[
        bool, typer.Option("--analytic", help="From the catalogue; measures nothing.")
    ] = False,
    cluster: Cluster = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard an interrupted profile.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Where to save [profile.json, links.json]."),
    ] = None,
    links: Annotated[
        bool,
        typer.Option("--links", help="Links between hosts; needs no model."),
    ] = False,
    hosts: Annotated[Path | None, typer.Option(help="Links: hostfile, reached by ssh.")] = None,
    read: Annotated[
        Path | None,
        typer.Option("--from", help="Links: convert a file instead."),
    ] = None,
    nics: Annotated[
        str | None,
        typer.Option(help="Links: eth0,eth1 or all [the system's choice]."),
    ] = None,
    fabric: Annotated[
        Path | None, typer.Option(help="Links: topology.conf or ibnetdiscover.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=1, max=86400, help="Seconds to measure [30, links 60]."),
    ] = None,
    serial: Annotated[bool, typer.Option("--serial", help="Links: one pair at a time.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Links: of sampled pairs.")] = 0,
    address: Annotated[str | None, typer.Option(help="Links: HOST[:PORT] of this host.")] = None,
    by_hand: Annotated[
        bool, typer.Option("--wait", help="Links: agents start by other means.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine runs the blocks of MODEL, or what links between hosts reach."""
    from launch.artifact import write_atomic
    from profiler.codec import encode

    if links:
        if model is not None or analytic:
            raise UserError("links have no model", hint="leave out `--model` and `--analytic`")
        from launch.cli import profile_links

        profile_links.run(
            out or Path("links.json"), hosts=hosts, read=read, nics=nics, fabric=fabric,
            budget_s=budget, serial=serial, seed=seed, address=address, by_hand=by_hand,
            restart=restart, as_json=as_json,
        )  # fmt: skip
        return
    if hosts is not None or read is not None:
        raise UserError("`--hosts` and `--from` go with `--links`", hint="add `--links`")
    if model is None:
        raise typer.BadParameter("give a model, or `--links`", param_hint="--model")
    out = out or Path("profile.json")
    if analytic:
        result = _analytic(model, cluster, seq_len)
    else:
        if cluster is not None:
            raise UserError("`--cluster` goes with `--analytic`", hint="measuring is done here")
        result = _measure(model, nproc, seq_len, micro_batches, tp, out, restart, budget)
    text = encode(result)
    write_atomic(out, text)
    if not analytic:
        from launch.profiling import discard_partial

        discard_partial(out)
    if as_json:
        typer.echo(text, nl=False)
    else:
        _print(result)
    note(f"Saved the profile to: `{out}`")
    if not as_json:
        say(f"\nTo plan with it:\n    meshwright plan -m {model} --profile {out} --global-batch 16")


def _analytic(model: str, cluster: str | None, seq_len: int) -> "Profile":
    from launch.cli.options import default_precision
    from profiler.analytic import analytic_profile
    from profiler.catalog import resolve_cluster, resolve_model
    from profiler.job import JobSpec

    if cluster is None:
        raise UserError("`--analytic` needs a cluster", hint="pass `-c h100-2x8`")
    spec, target = resolve_model(model), resolve_cluster(cluster)
    job = JobSpec(global_batch=1, seq_len=seq_len, precision=default_precision(target))
    return analytic_profile(spec, job, target)


def _measure(
    model: str,
    nproc: int,
    seq_len: int,
    micro_batches: str,
    tp: str | None,
    out: Path,
    restart: bool,
    budget_s: float | None,
) -> "Profile":
    from launch.profiling import BUDGET_S, measure_profile
    from profiler.catalog import load_device, resolve_model

    spec = resolve_model(model)
    degrees = parse_counts(tp, "--tp") if tp else _all_degrees(spec, nproc, seq_len)
    progress = Progress()
    try:
        return measure_profile(
            spec,
            seq_len,
            "fp32",
            num_processes=nproc,
            micro_batches=parse_counts(micro_batches, "--micro-batches"),
            tp_degrees=degrees,
            device=load_device("cpu").device,
            out=out,
            restart=restart,
            progress=(lambda *_: None) if STATE.quiet else progress,
            budget_s=budget_s or BUDGET_S,
        )
    finally:
        progress.close()


def _all_degrees(model: "ModelSpec", num_processes: int, seq_len: int) -> tuple[int, ...]:
    """Tensor-parallel degrees that both the processes and the model's sizes allow."""
    from profiler.measure.cases import check_tp_degrees

    found = []
    for degree in range(1, num_processes + 1):
        if num_processes % degree == 0:
            with contextlib.suppress(UserError):
                check_tp_degrees(model, seq_len, num_processes, degree)
                found.append(degree)
    return tuple(found)


def _print(profile: "Profile") -> None:
    from launch.cli.render import cluster_words, seconds, size

    where = profile.environment
    say(f"{profile.model.name} on {cluster_words(profile.cluster)}, {profile.source}")
    if where.num_cores:
        say(f"{where.device}, {where.num_cores} cores, torch {where.torch}, {where.backend}")
    head = f"{'block':<7}{'tp':>3}{'mbs':>4}{'forward':>11}{'backward':>11}{'in tp comm':>12}"
    say(f"\n  {head}{'kept':>11}")
    for e in profile.blocks:
        if e.status == "oom" or not (e.forward and e.input_grad and e.weight_grad):
            say(f"  {e.block:<7}{e.tp:>3}{e.micro_batch:>4}  out of memory")
            continue
        back = e.input_grad.median_s + e.weight_grad.median_s
        talk = e.forward_collective_s + e.backward_collective_s
        say(
            f"  {e.block:<7}{e.tp:>3}{e.micro_batch:>4}{seconds(e.forward.median_s):>11}"
            f"{seconds(back):>11}{seconds(talk):>12}{size(e.saved_bytes):>11}"
        )
    if profile.sharing:
        say("\n  slow-down by ranks computing at once")
        for tp in sorted({s.tp for s in profile.sharing}):
            own = [s for s in profile.sharing if s.tp == tp]
            say(f"    tp {tp:<4}{', '.join(f'{s.active}: {s.slowdown:.2f}x' for s in own)}")
