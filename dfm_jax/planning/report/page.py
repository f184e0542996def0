"""A compiled config as `compile.json`, as a page of Markdown, and as a table on the terminal."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dfm_jax.config import Config
from dfm_jax.models import flops
from dfm_jax.planning.report import roofline, verdict
from dfm_jax.planning.targets import Target

GIB = 2**30
TURNS = {"evaluate": "times", "sample": "steps"}  # what the loop of a program goes over
NOT_COUNTED = (
    "Not in these figures: CUDA's context and NCCL's buffers "
    f"(about {verdict.CONTEXT / GIB:.1f} and {verdict.CHANNELS / GIB:.1f} GiB beside JAX's pool), fragmentation "
    f"(taken as {verdict.FRAGMENTATION:.0%} of the pool), the host's memory, and, where a run evaluates and samples "
    "between its steps, the optimiser's moments beside those programs. cuDNN's workspace is by formula, "
    "B H L (4 d + 4) + 256 bytes of the largest backward call. No figure has been checked against a card of this kind."
)
BOUND_NOT_PREDICTION = (
    "A bound, not a prediction: products at the peak rate, each kernel touching its operands once, collectives at the "
    "full link bandwidth and hidden as far as the compiler's order allows. Products are not tuned when compiling "
    "without the card."
)


def summary(
    config: Config,
    target: Target,
    answers: dict[str, dict[str, Any]],
    parameters: int,
    num_states: int,
) -> dict[str, Any]:
    """Everything that the report says, as JSON: {target, parameters, programs: {name: ...}, training: {...}}."""
    programs = {}
    for name, answer in answers.items():
        judged = verdict.judge(answer, config, target.chip, target.num_devices)
        times = roofline.roofline(answer, target)
        programs[name] = answer | {"verdict": dataclasses.asdict(judged), "roofline": dataclasses.asdict(times)}
    result: dict[str, Any] = {
        "target": target.describe(),
        "devices": target.num_devices,
        "chip": {
            field: getattr(target.chip, field)
            for field in ("compute_capability", "memory", "memory_bandwidth", "peak", "nvlink", "network")
        },
        "parameters": parameters,
        "programs": programs,
        "notes": [NOT_COUNTED, BOUND_NOT_PREDICTION],
    }
    if "train" in programs:
        result["training"] = training(config, target, programs["train"], num_states)
    return result


def training(config: Config, target: Target, program: dict[str, Any], num_states: int) -> dict[str, Any]:
    """What follows for the configured run."""
    bound = program["roofline"]["bound"]
    tokens = config.training.batch_size * config.model.length
    executed = program["arithmetic"]["matrix_flops"] + program["arithmetic"]["attention_flops"]
    return {
        "steps": config.optim.n_iters,
        "tokens": tokens * config.optim.n_iters,
        "tokens_per_step": tokens,
        "model_flops_per_step": flops.training_step(config, num_states),
        "model_flops_per_token": flops.training_step(config, num_states) / tokens,
        "executed_flops_per_step": executed * target.num_devices,
        "mfu_at_bound": None if not bound else roofline.utilisation(config, num_states, bound, target),
        "at_utilisation": [dataclasses.asdict(p) for p in roofline.projections(config, num_states, target)],
    }


def terminal(result: dict[str, Any]) -> str:
    """A screenful."""
    lines = [f"{result['parameters']:,} parameters on {result['target']} ({result['devices']} devices)", ""]
    rows = [("program", "verdict", "needed", "usable", "card", "arguments", "temporaries", "compiled in")]
    for name, program in result["programs"].items():
        memory, judged = program["memory"], program["verdict"]
        rows.append(
            (
                name,
                judged["word"],
                gib(judged["needed"]),
                gib(judged["usable"]),
                gib(result["chip"]["memory"]),
                gib(memory["arguments"]),
                gib(memory["temporaries"]),
                f"{program['compile_seconds']:.0f} s",
            )
        )
    lines += [*aligned(rows), "  memory per device"]
    for name, program in result["programs"].items():
        lines += [f"{name}: {line}" for line in program["verdict"]["advice"]]
    if "training" in result:
        lines += ["", *training_lines(result)]
    turns = [line for name, p in result["programs"].items() for line in turn_lines(name, p, result["devices"])]
    return "\n".join([*lines, *([""] if turns else []), *turns])


def training_lines(result: dict[str, Any]) -> list[str]:
    plan, program = result["training"], result["programs"]["train"]
    times, calls = program["roofline"], program["arithmetic"]["custom_calls"]
    lines = [
        f"training step: {plan['tokens_per_step']:,} tokens, {plan['model_flops_per_step'] / 1e15:.3g} PFLOP of the "
        f"model, {plan['executed_flops_per_step'] / 1e15:.3g} executed; calls "
        + (", ".join(f"{count} x {name}" for name, count in sorted(calls.items())) or "none")
    ]
    if program["arithmetic"]["repeated_flops"]:
        again = program["arithmetic"]["repeated_flops"] * result["devices"] / plan["executed_flops_per_step"]
        lines.append(f"XLA computes {again:.1%} of it again, to keep to its limit of memory: use less of it")
    if times["bound"]:
        kernels, links, exposed = (seconds(times[name]) for name in ("kernels", "links", "exposed"))
        rate = plan["tokens_per_step"] / times["bound"]
        lines.append(
            f"at least {seconds(times['bound'])}: kernels {kernels}, links {links}, of which exposed {exposed} "
            f"-> MFU at most {plan['mfu_at_bound']:.0%}, {rate:,.0f} tokens/s (a bound, not a prediction)"
        )
    else:
        lines.append("the chip's description has no figures for its peak or links: no times")
    lines += [
        f"at {p['utilisation']:.0%} MFU: {p['tokens_per_second']:,.0f} tokens/s, {p['days']:.2f} days "
        f"for {plan['steps']:,} steps"
        for p in plan["at_utilisation"]
    ]
    return lines


def markdown(result: dict[str, Any], title: str) -> str:
    """The page."""
    lines = [
        f"# {title} on {result['target']}",
        "",
        f"{result['parameters']:,} parameters, {result['devices']} devices.",
        "",
        "## Memory per device",
        "",
    ]
    rows = [("", *result["programs"])]
    named = [
        ("verdict", lambda p: f"**{p['verdict']['word']}**"),
        ("needed (peak + cuDNN workspace)", lambda p: gib(p["verdict"]["needed"])),
        ("usable now", lambda p: gib(p["verdict"]["usable"])),
        ("usable at most", lambda p: gib(p["verdict"]["usable_at_most"])),
        ("compiler's peak", lambda p: gib(p["memory"]["peak"])),
        ("arguments", lambda p: gib(p["memory"]["arguments"])),
        ("temporaries", lambda p: gib(p["memory"]["temporaries"])),
        ("cuDNN workspace", lambda p: gib(p["arithmetic"]["attention_workspace"])),
        ("mesh (data x fsdp x tensor)", lambda p: " x ".join(str(n) for n in p["mesh"].values())),
        ("sequences a call", lambda p: f"{p['rows']:,}"),
    ]
    rows += [(label, *(show(p) for p in result["programs"].values())) for label, show in named]
    lines += [*table(rows), ""]
    for name, program in result["programs"].items():
        lines += [f"- {name}: {line}" for line in program["verdict"]["advice"]]
    lines += ["", result["notes"][0], ""]
    if "training" in result:
        lines += ["## Training step", "", *(f"- {line}" for line in training_lines(result)), ""]
        times = result["programs"]["train"]["roofline"]
        rows = [("time at the chip's figures", "")]
        rows += [(name, seconds(value)) for name, value in times.items()]
        lines += [*table(rows), "", result["notes"][1], ""]
    for name, program in result["programs"].items():
        lines += program_lines(name, program, result["devices"])
    return "\n".join(lines).rstrip() + "\n"


def turn_lines(name: str, program: dict[str, Any], devices: int) -> list[str]:
    """What a program that samples or judges costs for each step or time, and the device's waits for its host."""
    counts = program["arithmetic"]
    if name not in TURNS:
        return []
    turns, positions = program["turns"], program["tokens"] / devices
    each = f"each of {turns:,} {TURNS[name]}" if turns > 1 else "one evaluation of each loop"
    time = "" if counts["kernel_seconds"] is None else f"at least {seconds(counts['kernel_seconds'] / turns)}, "
    moved = counts["bytes_moved"] / positions / turns / 1e3
    waits = f"{counts['host_waits'] / turns:,.2g} waits for the host"
    return [f"{name}: {each}: {time}{moved:,.0f} kB a position, at least {waits}"]


def program_lines(name: str, program: dict[str, Any], devices: int) -> list[str]:
    vocabulary = program["vocabulary"]
    share = vocabulary["largest"] / vocabulary["logits_per_device"]
    lines = [f"## {name}: largest buffers", ""]
    rows = [("size", "array", "kind", "made by", "at")]
    rows += [
        (gib(b["bytes"]), b["shape"], b["kind"], operation(b["operation"]), b["source"]) for b in program["buffers"]
    ]
    lines += [*table(rows), ""]
    lines += share_lines(name, program, devices)
    lines += [line for turn in turn_lines(name, program, devices) for line in (f"- {turn}", "")]
    if program["arithmetic"]["slowest"]:
        lines += [f"## {name}: slowest kernels at the chip's figures", ""]
        rows = [("time", "executions", "products", "memory", "for", "from", "at")]
        for k in program["arithmetic"]["slowest"]:
            figures = f"{k['executions']:,.0f}", f"{k['flops'] / 1e12:,.2f} TFLOP", f"{k['bytes'] / 1e9:,.2f} GB"
            rows.append((seconds(k["seconds"]), *figures, k["category"], operation(k["operation"]), k["source"]))
        lines += [*table(rows), ""]
    lines += [
        f"The largest array over the vocabulary, `{vocabulary['shape'] or 'none'}`, has {share:.1%} of the entries "
        "that all logits of a device would have.",
        "",
        f"## {name}: custom calls and collectives",
        "",
    ]
    calls = program["arithmetic"]["custom_calls"]
    lines += [f"- {count} x `{target}`" for target, count in sorted(calls.items())] or ["- no custom calls"]
    lines += [
        f"- {count} x Pallas kernel `{kernel}`" for kernel, count in program["arithmetic"]["pallas_calls"].items()
    ]
    if program["arithmetic"]["unknown_loops"]:
        lines.append("- a loop whose length depends on the data is counted once")
    if program["arithmetic"]["host_waits"]:
        lines.append(
            f"- at least {program['arithmetic']['host_waits']:,} times the device waits for the host, which reads a "
            "condition: branches, and loops whose length depends on the data"
        )
    lines.append("")
    rows = [("collective", "devices x nodes", "executions", "array bytes", "sent by each", "link time", "from")]
    rows += [
        (
            f"{c['kind']} {c['dtype']}",
            f"{c['devices']} in {c['nodes']}",
            f"{c['count']:,.0f}",
            f"{c['bytes'] / 1e6:,.1f} MB",
            f"{c['sent'] / 1e6:,.1f} MB",
            seconds(c["seconds"]),
            "; ".join(operation(o) for o in c["operations"]),
        )
        for c in program["collectives"]
    ]
    return lines + ([*table(rows), ""] if len(rows) > 1 else ["No collectives.", ""])


def share_lines(name: str, program: dict[str, Any], devices: int) -> list[str]:
    """The kernels' bytes and times by what they are for, and their sums; bytes also for a position in one turn."""
    arithmetic, positions = program["arithmetic"], program["tokens"] / devices * program["turns"]
    if not arithmetic["shares"]:
        return []

    def figures_of(share: dict[str, Any]) -> tuple[str, str, str]:
        each = f"{share['bytes'] / positions / 1e3:,.1f} kB"
        return f"{share['flops'] / 1e12:,.2f} TFLOP", f"{share['bytes'] / 1e9:,.2f} GB", each

    rows = [
        (
            "for",
            "time",
            "executions",
            "products",
            "memory",
            "a position, each turn" if program["turns"] > 1 else "a position",
        )
    ]
    for share in arithmetic["shares"]:
        rows.append((share["category"], seconds(share["seconds"]), f"{share['kernels']:,.0f}", *figures_of(share)))
    total = {field: sum(share[field] for share in arithmetic["shares"]) for field in ("kernels", "flops", "bytes")}
    rows.append(("all", seconds(arithmetic["kernel_seconds"]), f"{total['kernels']:,.0f}", *figures_of(total)))
    return [f"## {name}: where the bytes go, a kernel counted where its largest result belongs", "", *table(rows), ""]


def operation(path: str) -> str:
    """The informative end of a path of JAX functions."""
    parts = [part for part in path.split("/") if part not in ("while", "body", "closed_call", "checkpoint")]
    return "/".join(parts[-3:])


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 2**20:.2f} MiB"


def seconds(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.2f} ms"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; the first row is the head."""
    clean = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    head, *body = ("| " + " | ".join(row) + " |" for row in clean)
    return [head, "|" + "---|" * len(rows[0]), *body]
