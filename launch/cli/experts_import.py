"""`meshwright experts import`: what others recorded, as our own file of routing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.cli.options import Json, OptionalModel
from launch.cli.terminal import note

if TYPE_CHECKING:
    from profiler.routing.trace import Routing

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
    first_step: Annotated[
        int, typer.Option(min=0, help="Leave out the tokens of earlier steps.")
    ] = 0,
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
    if first_step:
        routing = _from_step(routing, first_step, str(file))
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


def _from_step(routing: "Routing", step: int, place: str) -> "Routing":
    from profiler.errors import UserError
    from profiler.routing.trace import RoutingTrace

    if not isinstance(routing, RoutingTrace) or routing.step is None:
        raise UserError("the file does not say of which step its tokens are", place=place)
    if step > routing.step[-1]:
        raise UserError(f"it ends with step {routing.step[-1]}", place=place)
    return routing.since(step)


def split_keys(text: str | None) -> tuple[str, ...]:
    """`a,b` -> (a, b)."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
