"""`meshwright experts TRACE`: which rank holds which experts, by recorded routing."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from launch.cli.experts_import import Experts, Keys, Trace, split_keys
from launch.cli.options import Json
from launch.cli.terminal import bold, note, say
from profiler.errors import UserError

if TYPE_CHECKING:
    from planner.expert_placement import ExpertPlan, Ranks, Rates
    from profiler.cluster import ClusterSpec, NodeGroup
    from profiler.model import ModelSpec
    from profiler.routing.trace import Routing
    from solvers.experts.problem import Score

FORMAT_VERSION = "1.0"
_OVERRIDES = ("compute", "intra", "inter")
_MINE = "ours"


def run(
    trace: Trace,
    ep: Annotated[int, typer.Option(min=1, max=10**5, help="Ranks of expert parallelism.")],
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Whose experts [the trace's].")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option("-c", "--cluster", help="Whose ranks and links.")
    ] = None,
    redundant: Annotated[int, typer.Option(min=0, max=10**5, help="Replicas of a layer.")] = 0,
    per_node: Annotated[
        int | None, typer.Option("--ranks-per-node", min=1, help="[the cluster's, or all]")
    ] = None,
    traffic: Annotated[
        str, typer.Option(help="home: tokens return after each layer; chained: they go on.")
    ] = "home",
    copies: Annotated[
        str, typer.Option(help="What travels, of home: one copy per node, rank or choice.")
    ] = "node",
    groups: Annotated[
        int | None, typer.Option(min=1, help="Groups that routing is limited to [the model's].")
    ] = None,
    use: Annotated[str, typer.Option("--for", help="training or inference.")] = "training",
    compute: Annotated[
        float | None, typer.Option("--compute-s-per-token", min=0, help="Of one expert.")
    ] = None,
    intra: Annotated[
        float | None, typer.Option("--intra-s-per-token", min=0, help="Into a rank, in a node.")
    ] = None,
    inter: Annotated[
        float | None, typer.Option("--inter-s-per-token", min=0, help="Between nodes, one NIC.")
    ] = None,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.9, help="Share of the tokens to judge on alone.")
    ] = 0.25,
    method: Annotated[str, typer.Option(help="How to solve it.")] = "auto",
    seed: Annotated[int, typer.Option(min=0, max=2**31)] = 0,
    keys: Keys = None,
    experts: Experts = None,
    form: Annotated[
        str, typer.Option("--format", help="Of the file: meshwright, vllm, sglang, megatron.")
    ] = "meshwright",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Save the placement.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Place the experts of each layer on ranks, for the least time of a layer."""
    from launch.artifact import write_atomic
    from launch.expert_files import FORMS, document, text_of
    from planner.expert_placement import place
    from profiler.codec import replace
    from solvers.experts.solve import Method

    if form not in FORMS:
        raise UserError(f"`--format {form[:40]}` is not known", hint=f"one of {', '.join(FORMS)}")
    routing, spec = _routing(trace, model, keys, experts)
    given = {"compute": compute, "intra": intra, "inter": inter}
    ranks = _ranks(routing, spec, cluster, ep, redundant, per_node, use, given, traffic, copies)
    ranks = replace(ranks, num_groups=_groups(spec, groups, routing))
    begun = time.process_time()
    found = place(
        routing, ranks, held_out=held_out, method=_one_of("method", method, Method), seed=seed
    )
    cpu_s = time.process_time() - begun
    if out is not None:
        write_atomic(out, text_of(form, found, routing, spec))
    if as_json:
        from profiler.codec import canonical

        typer.echo(canonical(document(found, routing) | {"cpu_s": cpu_s}), nl=False)
    else:
        _print(found, routing, cpu_s, held_out)
    if out is not None:
        note(f"Saved the placement to: `{out}`")


def _routing(
    trace: Path, name: str | None, keys: str | None, experts: int | None
) -> "tuple[Routing, ModelSpec | None]":
    """The recording and the model asked for, which must fit; else the catalogued one that the
    recording names."""
    from launch.routing_files import read_any_routing
    from profiler.catalog import list_models, resolve_model
    from profiler.routing.checks import check_model
    from profiler.routing.readers import Wanted

    spec = resolve_model(name) if name else None
    num = experts or (spec.num_experts if spec else None) or None
    routing = read_any_routing(trace, Wanted(num_experts=num, keys=split_keys(keys)))
    if spec is not None:
        check_model(routing, spec, str(trace))
    elif routing.model in {item.name for item in list_models()}:
        spec = resolve_model(routing.model)
    return routing, spec


def _one_of(flag: str, value: str, kind: Any) -> Any:
    """The value, which is one of a `Literal`'s."""
    if value not in get_args(kind):
        known = ", ".join(get_args(kind))
        raise UserError(f"`--{flag} {value[:40]}` is not known", hint=f"one of {known}")
    return value


def _ranks(
    routing: "Routing", spec: "ModelSpec | None", cluster: str | None, ep: int, redundant: int,
    per_node: int | None, use: str, given: dict[str, float | None], traffic: str, copies: str,
) -> "Ranks":  # fmt: skip
    from planner.expert_placement import Ranks, slots_of
    from profiler.catalog import resolve_cluster
    from solvers.experts.problem import Copies, Traffic

    on = resolve_cluster(cluster) if cluster else None
    slots = slots_of(routing.num_experts, ep, redundant)
    sent = {
        "traffic": _one_of("traffic", traffic, Traffic),
        "copies": _one_of("copies", copies, Copies),
    }
    if on is not None and len(on.groups) > 1:
        return _mixed_ranks(spec, on, ep, slots, per_node, use, given, sent)
    if per_node is None:
        per_node = min(ep, on.uniform.devices_per_node) if on else ep
    if ep % per_node:
        raise UserError(
            f"{ep} ranks do not fill nodes of {per_node}", hint="pass another `--ranks-per-node`"
        )
    return Ranks(
        num_ranks=ep, ranks_per_node=per_node,
        slots_per_rank=slots, rates=_rates(spec, on.groups[0] if on else None, use, given), **sent,
    )  # fmt: skip


def _mixed_ranks(
    spec: "ModelSpec | None", cluster: "ClusterSpec", ep: int, slots: int, per_node: int | None,
    use: str, given: dict[str, float | None], sent: dict[str, Any],
) -> "Ranks":  # fmt: skip
    """On the nodes of several kinds in their order, or on `per_node` devices of each."""
    from planner.expert_ranks import devices_of, spread_ranks

    devices = devices_of(cluster, per_node=per_node)
    if ep > len(devices.node):
        raise UserError(
            f"cluster `{cluster.name}` has {len(devices.node)} such ranks, not {ep}",
            hint="take a smaller `--ep`",
        )
    rates = [_rates(spec, group, use, given) for group in cluster.groups]
    return spread_ranks(devices, rates, ep, 1, slots, **sent)


def _groups(spec: "ModelSpec | None", asked: int | None, routing: "Routing") -> int:
    """Groups of experts to which routing was limited."""
    from planner.expert_placement import routing_groups

    groups = asked or (routing_groups(spec) if spec is not None else 1)
    if routing.num_experts % groups:
        raise UserError(
            f"{groups} groups do not divide {routing.num_experts} experts",
            hint="pass another `--groups`",
        )
    return groups


def _rates(
    spec: "ModelSpec | None", node: "NodeGroup | None", use: str, given: dict[str, float | None]
) -> "Rates":
    """The catalogue's, but for those that were given, which are taken as they are."""
    from planner.expert_placement import Rates, rates_of
    from profiler.analytic import DEFAULT_SOFTWARE
    from profiler.catalog.constants import resolve_constants
    from profiler.job import JobSpec

    if use not in ("training", "inference"):
        raise UserError(f"`--for {use[:40]}` is not known", hint="training or inference")
    numbers = {f"{name}_s": value for name, value in given.items() if value is not None}
    if len(numbers) == len(_OVERRIDES):
        return Rates(**numbers)
    if spec is None or node is None:
        missing = "`-m MODEL`" if spec is None else "`-c CLUSTER`"
        raise UserError(
            f"what a token takes is not known without {missing}",
            hint="or pass `--compute-s-per-token`, `--intra-s-per-token` and `--inter-s-per-token`",
        )
    job = JobSpec(global_batch=1, seq_len=4096)
    rates = rates_of(spec, job, node, resolve_constants(node, DEFAULT_SOFTWARE))
    rates = rates.trained if use == "training" else rates
    own = {name: getattr(rates, name) for name in ("compute_s", "intra_s", "inter_s")}
    return Rates(**(own | numbers))


def _print(found: "ExpertPlan", routing: "Routing", cpu_s: float, held_out: float) -> None:
    ranks = found.ranks
    nodes = ranks.num_ranks // ranks.ranks_per_node
    name = routing.model or "trace"
    say(
        bold(
            f"{name}: {routing.num_layers} layers of {routing.num_experts} experts on "
            f"{ranks.num_ranks} ranks"
        )
    )
    where = f"{nodes} x {ranks.ranks_per_node}" if nodes > 1 else "one node"
    home = (
        "return home after each layer" if ranks.traffic == "home" else "go on from where they are"
    )
    say(f"{where}, {ranks.slots_per_rank} slots each; tokens {home}")
    load = "load max/mean"
    if ranks.slowdown is not None:
        load = "time max/level"
        for line in _speeds(ranks):
            say(line)
    say("")
    tokens = getattr(routing, "num_tokens", 0)
    test = round(tokens * held_out) if found.held_out else 0
    say(f"  {'':14}{load:>20}{'nodes per token':>20}{'us per token':>20}")
    both = f"{'placed':>10}{'unseen':>10}"
    say(f"  {'':14}{both * 3}")
    for name, scores in {_MINE: (found.train, found.held_out), **found.others}.items():
        mark = "✔" if name == _MINE else " "
        say(f"{mark} {name:<14}{_row(scores, tokens - test, test)}")
    proof = f"within {found.gap:.1%} of a proven bound"
    say(f"\nFound by `{found.method}` in {cpu_s:.2f} CPU-s, {proof}")


def _speeds(ranks: "Ranks") -> list[str]:
    """Which ranks are how fast."""
    slow = [] if ranks.slowdown is None else ranks.slowdown.tolist()
    lines, begin = [], 0
    for rank in range(1, len(slow) + 1):
        if rank == len(slow) or slow[rank] != slow[begin]:
            factor = slow[begin] / min(slow)
            how = "the fastest" if factor == 1 else f"computing takes {factor:.2f} times as long"
            lines.append(f"Ranks {begin} to {rank - 1}: {how}")
            begin = rank
    return lines


def _row(scores: "tuple[Score, Score | None]", tokens: int, test: int) -> str:
    train, unseen = scores
    columns = []
    for name in ("max_over_mean", "nodes_per_token"):
        columns.append(f"{getattr(train, name):>10.3f}")
        columns.append(f"{getattr(unseen, name):>10.3f}" if unseen else f"{'':>10}")
    each = train.time_s / max(tokens, 1) * 1e6
    columns.append(f"{each:>10.3f}")
    columns.append(f"{unseen.time_s / test * 1e6:>10.3f}" if unseen and test else f"{'':>10}")
    return "".join(columns)
