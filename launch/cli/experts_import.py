"""`meshwright experts import`: what others recorded, as our own file of routing."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.options import Json, OptionalModel
from launch.cli.terminal import note

Keys = Annotated[
    str | None, typer.Option(help="Arrays of an npz to join: a,b.", show_default="all")
]
Experts = Annotated[
    int | None,
    typer.Option(min=1, max=2**15 - 1, help="Experts of a layer.", show_default="the largest id"),
]
Trace = Annotated[
    Path, typer.Argument(help="Recorded routing", metavar="TRACE", show_default=False)
]


def run(
    file: Trace,
    out: Annotated[Path, typer.Option("-o", "--out", help="npz to write.", show_default=False)],
    keys: Keys = None,
    experts: Experts = None,
    model: OptionalModel = None,
    as_json: Json = False,
) -> None:
    """Convert what vLLM, SGLang, Megatron or EPLB recorded."""
    from launch.routing_files import read_any_routing, write_routing
    from profiler.catalog import resolve_model
    from profiler.codec import canonical, replace
    from profiler.routing.checks import check_model
    from profiler.routing.readers import Wanted
    from profiler.routing.trace import RoutingTrace

    spec = resolve_model(model) if model else None
    num = experts or (spec.num_experts if spec else None) or None
    wanted = Wanted(num_experts=num, keys=split_keys(keys))
    routing = read_any_routing(file, wanted)
    if spec is not None:
        check_model(routing, spec, str(file))
        routing = replace(routing, model=spec.name)
    write_routing(out, routing)
    tokens = routing.num_tokens if isinstance(routing, RoutingTrace) else None
    if as_json:
        document = {
            "format_version": "1.0", "kind": "routing-file", "file": str(out), "tokens": tokens,
            "layers": routing.num_layers, "experts": routing.num_experts, "model": routing.model,
        }  # fmt: skip
        typer.echo(canonical(document), nl=False)
    size = "counts" if tokens is None else f"{tokens:,} tokens"
    note(f"Saved {size} of {routing.num_layers} MoE layers of {routing.num_experts} experts to: "
         f"`{out}`")  # fmt: skip


def split_keys(text: str | None) -> tuple[str, ...]:
    """`a,b` -> (a, b)."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
