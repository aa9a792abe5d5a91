"""Plans and verdicts as text of at most 80 columns. Pure: records in, lines out."""

import math
import textwrap
from itertools import groupby

from planner.explain import LITTLE, used_hosts
from planner.objective import price_per_million_tokens, relative_cost
from planner.pipeline import owners_of
from planner.plan import Candidate, Plan, StageMemory
from planner.space import MEMORY_RULE, SENTENCES
from planner.where import capacities_of, groups_of_ranks, kinds_of_ranks, used_of_groups
from profiler.cluster import ClusterSpec

GIB = 2**30
_BETTER = {"step": "faster", "cost": "cheaper", "devices": "faster"}
_BAR, _HOSTS = 24, 16


def seconds(value: float) -> str:
    """Four significant digits, in s or ms; whole seconds from 10,000 on."""
    if value and abs(value) < 0.1:
        return f"{value * 1e3:.3g} ms"
    if abs(value) >= 9999.5:
        return f"{value:,.0f} s"
    return f"{value:.4g} s"


def size(num_bytes: float) -> str:
    """In GiB, MiB or KiB."""
    for unit, scale in (("GiB", GIB), ("MiB", 2**20)):
        if abs(num_bytes) >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def cluster_words(cluster: ClusterSpec) -> str:
    """`2 x 8 h100`."""
    return ", ".join(
        f"{g.num_nodes} x {g.devices_per_node} {g.device.name}" for g in cluster.groups
    )


def heading(plan: Plan) -> str:
    """What was asked, in a line."""
    job = plan.job
    text = (
        f"{plan.model.name} on {cluster_words(plan.cluster)}, "
        f"global batch {job.global_batch} x {job.seq_len} tokens, {job.precision}"
    )
    return text if len(plan.cluster.groups) == 1 else textwrap.fill(text, 80)


def considered(plan: Plan) -> str:
    """What became of the enumerated layouts."""
    counts = plan.counts
    if counts.enumerated == 0:
        return "One layout, given"
    unfit = counts.rejected.get(MEMORY_RULE, 0)
    ruled_out = sum(counts.rejected.values()) - unfit
    layouts = "layout" if counts.enumerated == 1 else "layouts"
    text = (
        f"Considered {counts.enumerated:,} {layouts}: {ruled_out:,} ruled out, {unfit:,} do not "
        f"fit, {counts.pruned:,} pruned, "
    )
    last = f"{counts.simulated:,} simulated"
    if len(text) + len(last) <= 80:
        return text + last
    return f"{text.rstrip()}\n{last}" if len(text) <= 81 else textwrap.fill(text + last, 80)


def table(plan: Plan) -> list[str]:
    """The chosen layout and the alternatives, the best first."""
    shown = (plan.chosen, *plan.alternatives)
    counted = counts_devices(plan)
    used = [devices_word(plan, c) for c in shown] if counted else []
    column = max((9, *(len(word) + 2 for word in used))) if counted else 0
    width = 39 - column
    heads = f"{'devices':>{column}}" if counted else ""
    lines = [f"     {'layout':<{width}}{heads}{'step':>10}{'MFU':>7}{'peak':>10}{'vs best':>9}"]
    for i, c in enumerate(shown):
        more_s = "chosen" if i == 0 else versus(plan, c)
        label = f"{c.config.label} {c.config.schedule}"
        first, *more = textwrap.wrap(label, width - 1, break_on_hyphens=False)
        num = f"{used[i]:>{column}}" if counted else ""
        lines.append(
            f" {'✔' if i == 0 else ' '}   {first:<{width}}{num}{seconds(c.cost.step_s):>10}"
            f"{c.cost.mfu:>7.1%}{size(c.cost.peak_bytes):>10}{more_s:>9}"
        )
        lines += [f"       {line}" for line in more]
    return lines


def counts_devices(plan: Plan) -> bool:
    """Whether tables of layouts say how many devices each uses."""
    shown = (plan.chosen, *plan.alternatives)
    return plan.options.objective != "step" or any(idle(plan, c) for c in shown)


def devices_word(plan: Plan, candidate: Candidate) -> str:
    """How many devices work; of unlike nodes, `8+4`: of each kind, in the cluster's order."""
    if len(plan.cluster.groups) == 1:
        return f"{candidate.config.num_devices:,}"
    used = used_of_groups(plan.cluster, candidate.config, candidate.placement)
    return "+".join(f"{n:,}" for n in used)


def versus(plan: Plan, other: Candidate) -> str:
    """How much worse than the chosen layout; where fewest devices are sought, by their number."""
    more = other.config.num_devices - plan.chosen.config.num_devices
    if plan.options.objective == "devices" and more:
        return f"{more:+,} dev."
    return f"+{max(0.0, relative_cost(plan.options, plan.chosen, other) - 1):.1%}"


def idle(plan: Plan, candidate: Candidate) -> int:
    """Devices of the cluster that a layout leaves idle."""
    return plan.cluster.num_devices - candidate.config.num_devices


def use_lines(plan: Plan) -> list[str]:
    """Which devices work, and what they cost, where there is something to say."""
    lines, total = [], plan.cluster.num_devices
    mixed = len(plan.cluster.groups) > 1
    if mixed:
        chosen = plan.chosen
        used = used_of_groups(plan.cluster, chosen.config, chosen.placement)
        words = [
            f"{n:,} of {g.num_nodes * g.devices_per_node:,} {g.device.name}"
            for g, n in zip(plan.cluster.groups, used, strict=True)
        ]
        left = idle(plan, chosen)
        rest = f"; {left:,} stay idle" if left else ""
        lines += textwrap.wrap(f"Uses {', '.join(words)}{rest}", 80)
    elif left := idle(plan, plan.chosen):
        lines.append(f"Uses {total - left:,} of {total:,} devices; {left:,} stay idle")
    price = price_per_million_tokens(plan.chosen)
    if price is None and plan.options.objective == "cost":
        e, num = plan.chosen.cost, plan.chosen.config.num_devices
        lines.append(f"{num / e.tokens_per_s * 1e6 / 3600:.4g} device-hours per million tokens")
    if price is not None:
        lines.append(f"{price:.4g} per million tokens at the cluster's prices")
    return lines


def split_words(plan: Plan, candidate: Candidate) -> str:
    """Layers of each stage, and where embedding and head are."""
    layers = candidate.placement.layers_per_stage(plan.model.num_layers)
    if len(plan.cluster.groups) > 1:
        return _mixed_split(plan, candidate, layers)
    if len(layers) == 1:
        return f"all {layers[0]} layers"
    if len(set(layers)) == 1:
        each = "1 layer" if layers[0] == 1 else f"{layers[0]} layers"
        return f"{len(layers)} stages of {each} (embedding first, head last)"
    if len(layers) > 12:
        few, many = min(layers), max(layers)
        return f"{len(layers)} stages of {few} to {many} layers (embedding first, head last)"
    return f"{' + '.join(map(str, layers))} layers (embedding first, head last)"


def _mixed_split(plan: Plan, candidate: Candidate, layers: tuple[int, ...]) -> str:
    """`stages of 10 layers on a100-80, 22 on h100`; equal neighbours are counted."""
    config = candidate.config
    owners = owners_of(config, candidate.placement)
    of_ranks = groups_of_ranks(plan.cluster, config, candidate.placement)
    names = [
        " and ".join(plan.cluster.groups[g].device.name for g in of_ranks[owner])
        for owner in owners
    ]
    runs: list[str] = []
    for name, own in groupby(zip(names, layers, strict=True), key=lambda pair: pair[0]):
        same = [(n, len(list(equal))) for n, equal in groupby(n for _, n in own)]
        each = [f"{times} x {n}" if times > 1 else f"{n}" for n, times in same]
        runs.append(f"{' + '.join(each)} on {name}")
    shown = runs if len(runs) <= 8 else [*runs[:4], "...", *runs[-3:]]
    return f"layers per stage: {', '.join(shown)} (embedding first, head last)"


def memory_bars(plan: Plan) -> list[str]:
    """Per stage: weights and gradients, optimizer, activations, workspace, free."""
    rooms = capacities_of(plan.cluster, plan.chosen.config, plan.chosen.placement)
    stages = plan.chosen.cost.stages
    kinds = kinds_of_ranks(plan.cluster, plan.chosen.config, plan.chosen.placement)
    names = [k.device.name if len(plan.cluster.groups) > 1 else "" for k in kinds]
    shown = _shown(names)
    lines = ["         █ weights, grads  ▓ optimizer  ▒ activations  ░ other  · free"]
    for s in shown:
        memory, capacity = stages[s].memory, rooms[s]
        share = memory.total_bytes / capacity
        lines.append(
            f"stage {s:<3}{_bar(memory, capacity)}  {size(memory.total_bytes):>9} of "
            f"{size(capacity):<9} {share:>4.0%}  {names[s][:16]}".rstrip()
        )
        if s + 1 not in shown and s + 1 < len(stages):
            lines.append("...")
    return lines


def _shown(names: list[str]) -> list[int]:
    """Of many stages the first and last two, and where the kind of device changes."""
    last = len(names) - 1
    if last < 8:
        return list(range(last + 1))
    changes = [s for s in range(1, last + 1) if names[s] != names[s - 1]][:4]
    return sorted({0, 1, last - 1, last, *changes, *(s - 1 for s in changes)})


def _bar(memory: StageMemory, capacity: int) -> str:
    parts = (
        ("█", memory.weight_bytes + memory.grad_bytes),
        ("▓", memory.optimizer_bytes),
        ("▒", memory.activation_bytes),
        ("░", memory.buffer_bytes + memory.workspace_bytes),
    )
    bar, total = "", 0
    for glyph, num_bytes in parts:
        total += num_bytes
        bar += glyph * (min(_BAR, round(total / capacity * _BAR)) - len(bar))
    return bar + "·" * (_BAR - len(bar))


def picture(plan: Plan) -> list[str]:
    """The table, the split and the memory of the chosen layout."""
    sentence = split_words(plan, plan.chosen)
    split = sentence[:1].upper() + sentence[1:]
    if plan.chosen.estimate is None:
        config = plan.chosen.config
        layout = f"Given: {config.label} {config.schedule}"
        return [layout, split, "The cost model does not cover it: nothing is predicted"]
    words = [*use_lines(plan), *textwrap.wrap(split, 80), *host_lines(plan)]
    return [*table(plan), "", *words, *memory_bars(plan), ""]


def host_lines(plan: Plan) -> list[str]:
    """On which hosts the ranks are, and what that wins, where links are known one by one."""
    hosts = used_hosts(plan)
    if not hosts or not plan.default_order_s:
        return []
    gain = plan.default_order_s / plan.chosen.cost.step_s
    if gain - 1 < LITTLE:
        return ["No order of the hosts found is faster than their own"]
    more = f" and {len(hosts) - _HOSTS:,} more" if hosts[_HOSTS:] else ""
    text = f"Hosts by their first rank: {', '.join(hosts[:_HOSTS])}{more}"
    return [*textwrap.wrap(text, 80), f"{gain:.2f} times as fast as with ranks in the hosts' order"]


def split_lines(candidate: Candidate) -> list[str]:
    """Where the step goes."""
    e = candidate.cost
    parts = (
        ("compute", e.compute_s),
        ("p2p", e.p2p_s),
        ("collective", e.collective_s),
        ("idle", e.idle_s),
    )
    return [f"  {name:<11}{seconds(v):>9}{v / e.step_s:>7.1%}" for name, v in parts]


def rejected_lines(plan: Plan) -> list[str]:
    """Rejections by rule, the most frequent first."""
    items = sorted(plan.counts.rejected.items(), key=lambda x: (-x[1], x[0]))
    lines = []
    for n, rule in ((n, rule) for rule, n in items):
        first, *more = textwrap.wrap(SENTENCES.get(rule, ""), 44) or [""]
        lines.append(f"  {n:>11,}  {rule:<20} {first}".rstrip())
        lines += [f"{'':36}{line}" for line in more]
    return lines


def _at_most(share: float) -> str:
    """In tenths of a percent, rounded up: a proof may not promise more than it proves."""
    return f"{math.ceil(share * 1000 - 1e-6) / 1000:.1%}"


def proof(plan: Plan) -> str:
    """What the figures rest on, and how far the choice is from its bound."""
    e = plan.chosen.cost
    gap = (e.step_s - e.bound_s) / e.step_s
    lines = [f"Within {_at_most(gap)} of the lower bound of this layout"]
    if plan.bound_s:
        open_gap = (e.step_s - plan.bound_s) / e.step_s
        better, space = _BETTER[plan.options.objective], "of the space"
        if plan.options.objective == "devices":
            space = f"on {plan.chosen.config.num_devices:,} devices"
        lines.append(
            f"No layout {space} is {better}"
            if open_gap < 1e-9
            else f"No layout {space} is more than {_at_most(open_gap)} {better} (proven bound)"
        )
    software = plan.profile.software
    if e.measured_share:
        lines.append(f"{e.measured_share:.0%} of the busy time rests on measured entries")
    elif software is not None:
        lines.append(f"Computed for `{software.name}` from the catalogue; nothing was measured")
    else:
        lines.append("All of it is computed from catalogue numbers, nothing was measured")
    return "\n".join(lines)
