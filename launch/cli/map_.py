"""`meshwright map`: which host each rank sits on, for people who keep their degrees."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.options import Json, parse_axes
from launch.cli.terminal import note, say
from profiler.errors import UserError

if TYPE_CHECKING:
    from launch.rank_files import RankFile
    from planner.config import ParallelConfig
    from planner.mapping import Mapped, Mapping
    from planner.mesh import Mesh
    from planner.nics import NicOfGpu
    from planner.plan import Plan
    from planner.traffic import Traffic
    from profiler.job import JobSpec
    from profiler.links import Links
    from profiler.model import ModelSpec

FORMAT_VERSION = "1.0"
_MODEL, _BATCH_PER_REPLICA = "llama3-70b", 16
_DATA = ("dp", "dp_replicate", "dp_shard")
_AXES = ("pp", *_DATA, "cp", "tp", "ep", "etp")
_WIDTH = 80


def run(
    links: Annotated[
        Path, typer.Option(help="Measured links: JSON, CSV, mpiGraph.", show_default=False)
    ],
    per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=1, max=1024, help="[the plan's, or 8]")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Degrees, outermost first: pp=8,dp=2,tp=8.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Degrees, model and job of a plan.")] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help=f"Whose traffic [{_MODEL}].")
    ] = None,
    global_batch: Annotated[
        int | None, typer.Option(min=1, max=10**7, help="Sequences per step [16 per replica].")
    ] = None,
    seq_len: Annotated[int, typer.Option(min=1, max=10**9)] = 4096,
    micro_batch: Annotated[int, typer.Option(min=1, max=10**6)] = 1,
    intra: Annotated[
        float, typer.Option(help="GB/s one way between two devices of a node.")
    ] = 200.0,
    topo: Annotated[
        Path | None,
        typer.Option(
            help="`nvidia-smi topo -m` of a node: the NIC of each GPU.", show_default=False
        ),
    ] = None,
    keep_nodes: Annotated[
        bool, typer.Option("--keep-nodes", help="Consecutive ranks stay on one node.")
    ] = False,
    order_out: Annotated[
        str | None,
        typer.Option(help="Print the order instead: hostfile, rankfile or slurm."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Save the plan with its ranks so placed.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Map ranks to hosts whose links differ, for the least communication."""
    kind = _order_kind(order_out)
    from planner.mapping import map_ranks
    from planner.traffic import traffic_of
    from profiler.link_files import read_links

    if not (math.isfinite(intra) and intra > 0):
        raise UserError(f"`--intra {intra}` is no rate", hint="GB/s, above 0")
    if out is not None and plan is None:
        raise UserError("`--out` saves a plan", hint="give one with `--plan`")
    found = _read(plan)
    mesh, config, spec, job = _question(found, axes, model, global_batch, seq_len, micro_batch)
    per_node = per_node or (found.cluster.uniform.devices_per_node if found else 8)
    table = read_links(links).with_inside(intra * 1e9)
    nics = _nics(topo, per_node) if topo is not None else ()
    traffic = traffic_of(spec, config, job)
    if plan is None and model is None:
        note(f"Traffic is that of {spec.name}, as no `--model` is given")
    note(f"Mapping {mesh.num_ranks:,} ranks to {len(table.hosts):,} hosts...")
    begin = time.process_time()
    mapped = map_ranks(mesh, traffic, table, per_node, seed=seed, boxes=not keep_nodes)
    cpu_s = time.process_time() - begin
    note(f"{mapped.evaluated:,} orders looked at in {cpu_s:.1f} s")
    hosts = [table.hosts[node] for node in mapped.best.nodes]
    if found is not None and out is not None:
        _save(found, out, mapped.best.nodes, table, per_node)
    text = None
    if kind:
        from launch.rank_files import rank_file

        text = rank_file(kind, hosts)
    if as_json:
        from profiler.codec import canonical

        document = _document(mapped, traffic, hosts, table, cpu_s, seed)
        if text:
            document["order"] = text
        if nics:
            document["nics"] = [{"gpu": n.gpu, "nic": n.nic, "kind": n.kind} for n in nics]
        typer.echo(canonical(document), nl=False)
    elif text:
        typer.echo(text, nl=False)
    else:
        _print(mapped, mesh, spec, job, table)
        _say_findings(links, set(hosts))
        if nics:
            say("NIC of each GPU of a node, as near as equal numbers allow:")
            _say_list([f"{n.gpu}:{n.nic}({n.kind})" for n in nics])


def _read(plan: Path | None) -> "Plan | None":
    if plan is None:
        return None
    from launch.artifact import read_plan

    return read_plan(plan)


def _nics(topo: Path, per_node: int) -> "tuple[NicOfGpu, ...]":
    from planner.nics import nics_of_gpus
    from profiler.link_files import read_nvidia_topo

    nics = nics_of_gpus(read_nvidia_topo(topo), str(topo))
    if len(nics) != per_node:
        raise UserError(
            f"the table has {len(nics)} GPUs, a node {per_node}",
            hint="give the table of one of the nodes, or `--gpus-per-node`",
            place=str(topo),
        )
    return nics


def _save(
    content: "Plan", out: Path, nodes: tuple[int, ...], table: "Links", per_node: int
) -> None:
    """The plan with the device of each coordinate. Its figures stay those of links all alike."""
    from launch.artifact import write_atomic
    from planner.placed import named
    from planner.plan import plan_id
    from profiler.codec import encode, replace

    node = content.cluster.uniform
    if (node.num_nodes, node.devices_per_node) != (len(table.hosts), per_node):
        raise UserError(
            f"the plan is for {node.num_nodes} nodes of {node.devices_per_node} devices, the map "
            f"for {len(table.hosts)} of {per_node}",
            hint="plan for the hosts of the links, in their order",
            place=f"plan {content.id}",
            kind="stale",
        )
    ranks, devices = named(nodes, per_node)
    placement = replace(content.chosen.placement, ranks=ranks, devices=devices)
    chosen = replace(content.chosen, placement=placement)
    mapped = replace(content, chosen=chosen, id="")
    write_atomic(out, encode(replace(mapped, id=plan_id(mapped))))
    note(f"Saved the plan to: `{out}`; its times are those of links all alike")


def _order_kind(text: str | None) -> "RankFile | None":
    from launch.rank_files import KINDS

    known = next((kind for kind in KINDS if kind == text), None)
    if text is not None and known is None:
        raise UserError(
            f"`--order-out {text[:40]}` is not known", hint=f"one of {', '.join(KINDS)}"
        )
    return known


def _question(
    plan: "Plan | None", axes: str | None, model: str | None, batch: int | None, seq_len: int,
    micro_batch: int,
) -> "tuple[Mesh, ParallelConfig, ModelSpec, JobSpec]":  # fmt: skip
    from planner.mesh import Mesh
    from profiler.catalog import resolve_model
    from profiler.job import JobSpec

    if plan is not None:
        if axes or model or batch:
            raise UserError(
                "a plan has axes, model and batch of its own",
                hint="leave out `--axes`, `--model` and `--global-batch`",
            )
        config = plan.chosen.config
        return Mesh.of(config), config, plan.model, plan.job
    if not axes:
        raise UserError("nothing says what the ranks are", hint="give `--axes` or `--plan`")
    degrees = _degrees(axes)
    config = _config(degrees, micro_batch)
    spec = resolve_model(model or _MODEL)
    if batch is None:
        batch = _BATCH_PER_REPLICA * config.num_replicas * micro_batch
    if batch % (config.num_replicas * micro_batch):
        raise UserError(
            f"global batch {batch} does not divide by {config.num_replicas} replicas of "
            f"micro-batch {micro_batch}"
        )
    order = {name: size for name, size in degrees.items() if name not in ("ep", "etp")}
    mesh = Mesh(axes=order, ep=degrees.get("ep", 1), etp=degrees.get("etp", 1))
    return mesh, config, spec, JobSpec(global_batch=batch, seq_len=seq_len)


def _degrees(text: str) -> dict[str, int]:
    degrees: dict[str, int] = {}
    for name, values in parse_axes([text], "--axes").items():
        if name not in _AXES:
            raise UserError(f"`{name}` is no axis", hint=f"axes are {', '.join(_AXES)}")
        if len(values) != 1 or not values[0].isdigit() or not 0 < int(values[0]) <= 10**6:
            raise UserError(f"`{name}={','.join(values)[:40]}` is no degree", hint="like tp=8")
        degrees[name] = int(values[0])
    if "dp" in degrees and set(degrees) & {"dp_replicate", "dp_shard"}:
        raise UserError("`dp` is dp_replicate x dp_shard", hint="give it, or these two")
    return degrees


def _config(degrees: dict[str, int], micro_batch: int) -> "ParallelConfig":
    from planner.config import ParallelConfig

    return ParallelConfig(
        pp=degrees.get("pp", 1),
        dp_replicate=degrees.get("dp_replicate", degrees.get("dp", 1)),
        dp_shard=degrees.get("dp_shard", 1),
        cp=degrees.get("cp", 1),
        tp=degrees.get("tp", 1),
        ep=degrees.get("ep", 1),
        etp=degrees.get("etp", 1),
        micro_batch=micro_batch,
        recompute="none",
        schedule="1f1b",
    )


def _document(
    mapped: "Mapped", traffic: "tuple[Traffic, ...]", hosts: list[str], links: "Links",
    cpu_s: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    def of(mapping: "Mapping") -> dict[str, Any]:
        return {"seconds": mapping.seconds, "by_axis": mapping.by_axis, "in_node": mapping.box}

    return {
        "format_version": FORMAT_VERSION,
        "kind": "map",
        "default": of(mapped.default),
        "ours": of(mapped.best),
        "bound_seconds": mapped.bound_s,
        "gap": mapped.gap,
        "exact": mapped.exact,
        "gain": mapped.default.seconds / mapped.best.seconds if mapped.best.seconds else 1.0,
        "cpu_seconds": cpu_s,
        "evaluated": mapped.evaluated,
        "seed": seed,
        "hosts": hosts,
        "idle": sorted(set(links.hosts) - set(hosts)),
        "traffic": {
            t.axis: {"shape": t.shape, "bytes": t.num_bytes, "messages": t.messages}
            for t in traffic
        },
    }


def _print(
    mapped: "Mapped", mesh: "Mesh", model: "ModelSpec", job: "JobSpec", links: "Links"
) -> None:
    sizes = " ".join(f"{name}{size}" for name, size in mesh.axes.items())
    say(f"{model.name} as {sizes} on {len(links.hosts)} hosts, {job.global_batch:,} x "
        f"{job.seq_len:,} tokens")  # fmt: skip
    say("Seconds that a step communicates, nothing hidden behind computation:\n")
    say(f"{'axis':<8}{'default':>12}{'this map':>12}")
    rows = [(axis, s, mapped.best.by_axis[axis]) for axis, s in mapped.default.by_axis.items()]
    rows.append(("all", mapped.default.seconds, mapped.best.seconds))
    for axis, before, after in rows:
        say(f"{axis:<8}{before:>12.4g}{after:>12.4g}")
    gain = mapped.default.seconds / mapped.best.seconds if mapped.best.seconds else 1.0
    proof = "all assignments were compared" if mapped.exact else (
        f"at most {mapped.gap:.1%} above the least possible"
    )  # fmt: skip
    say(f"\n{gain:.2f} times as fast as the default order")
    say(f"Proof: {proof}")
    if mapped.best.box and mapped.best.box != mapped.default.box:
        inside = " ".join(f"{n}{s}" for n, s in mapped.best.box.items() if s > 1)
        say(f"A node holds {inside or 'one rank'}")
    hosts = list(dict.fromkeys(links.hosts[node] for node in mapped.best.nodes))
    say("\nHosts by their first rank:")
    _say_list(hosts)
    idle = sorted(set(links.hosts) - set(hosts))
    if idle:
        say("Left out:")
        _say_list(idle)


def _say_findings(path: Path, used: set[str]) -> None:
    """What stands out in the links of hosts that the map uses, where they were measured."""
    from profiler.link_files import read_link_report

    report = read_link_report(path)
    found = () if report is None else report.findings
    lines = [f.message for f in found if f.host in used and (not f.peer or f.peer in used)]
    if lines:
        say("\nWhat stands out in the links of these hosts:")
        for line in lines:
            say(f"  {line}")


def _say_list(names: list[str], most: int = 64) -> None:
    import textwrap

    text = " ".join(names[:most]) + (f" and {len(names) - most:,} more" if names[most:] else "")
    say(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  "))
