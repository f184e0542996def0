"""`python main.py --config=... --mode=... --config.group.field=value`: from words to a checked command.

A run's settings are `--config.*` and are saved with it; what a mode works on is a bare flag.
"""

import dataclasses
import difflib
import os.path
import pathlib
from collections.abc import Sequence
from typing import Any, NoReturn

from dfm_jax import config as configs
from dfm_jax.config import Config, find_config, hints, overrides, retired
from dfm_jax.runtime.errors import UsageError

RUNS = pathlib.Path("runs")
MODES = ("train", "prepare", "eval", "sample", "import", "export", "compile", "benchmark")
# Modes that work on a finished or running run, and take its saved config when no other is named.
ON_A_RUN = ("eval", "sample", "export")

# Flag -> (modes that read it, help).
OPERANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "step": (("eval", "sample", "export"), "checkpoint to use; the newest if not given"),
    "from": (("import",), "published folder, OWNER/NAME of the hub, or checkpoint file (.pth, .safetensors)"),
    "layout": (("import",), "whose weights, where config.json does not say: reference, sedd, mdlm, udlm or duo"),
    "mask_id": (("import",), "the mask's id, where it is inside the vocabulary and no tokenizer tells"),
    "format": (("export",), "safetensors (default) or pytorch, a file; hub or mdlm, a folder for others to load"),
    "push": (("export",), "OWNER/NAME of the hub, to upload that folder to"),
    "license": (("export",), "of the weights, for the model card, as the hub calls it; unknown if not given"),
    "output": (
        ("export", "eval", "sample"),
        "file or folder that export writes; folder that eval and sample write into, where not the run's own",
    ),
    "prompt": (("sample",), "text to continue, or a text with <gap:N> where N tokens are to be filled in"),
    "prompt_file": (("sample",), "file that holds the prompt"),
    "length": (("sample",), "tokens of a text, also above the network's: in blocks, shown as each ends (mask source)"),
    "block": (("sample",), "with --length: new tokens at a time; half a row, or all where the text fits, if not given"),
    "compare": (("eval",), "RUN,RUN,...: print their reports side by side and evaluate nothing"),
    "shard": (("prepare",), "i/n: prepare part i of n; a last call without it joins the parts"),
    "show": (("prepare",), "N: print N blocks of data.train as the network will see them"),
    "target": (("compile",), "CHIP:GPUS or CHIP:NODESxGPUS to compile for, such as h100:8 or h100:2x8"),
    "sweep": (("compile",), "compile many variants and print what fits: all, or some of mesh,batch,remat"),
    "only": (("benchmark",), "NAME,NAME,...: the benchmarks to run; all if not given"),
    "seconds": (("benchmark",), "what is not measured by then is named; 480 if not given, 0 is no end"),
}
SWITCHES: dict[str, tuple[tuple[str, ...], str]] = {
    "verify": (("prepare",), "read every shard and compare its checksum with the manifest"),
    "prompt_special": (("sample",), "names of special tokens in the prompt, such as <|endoftext|>, stand for them"),
    "trim": (("sample",), "end each text at its first end of text"),
    "frontier": (("eval",), "sweep temperature and steps, and plot perplexity against entropy"),
    "eval_elbo": (("eval",), "estimate the likelihood (config.eval.elbo)"),
    "eval_perplexity": (("eval",), "generate samples and judge them (config.eval.perplexity)"),
    "trace": (("benchmark",), "write a jax.profiler trace of each benchmark"),
}
# Operands that are integers of 0 or more; the others are text.
NUMBERS = ("step", "show", "mask_id", "length", "block", "seconds", "num_processes", "process_id")
PATHS = ("config", "workdir", "from", "output", "prompt_file", "target")  # `~` in them is the home folder
MAY_BE_EMPTY = ("prompt",)
LAST_HOLDS = ("workdir",)  # launch/slurm.sbatch gives its own, and then what it was given
# Operands that may stand without a value, and what they then mean.
ALONE = {"sweep": "all"}
EVERY_MODE: dict[str, str] = {
    "mode": f"one of {', '.join(MODES)}",
    "config": "a file under configs/",
    "workdir": "folder of the run; runs/NAME for training, the newest run for eval and sample",
    "coordinator": "HOST:PORT of process 0, when several processes train together outside Slurm",
    "num_processes": "how many processes train together",
    "process_id": "which of them this is, from 0",
}
FLAGS = (*EVERY_MODE, *OPERANDS, *SWITCHES)


@dataclasses.dataclass(frozen=True)
class Command:
    """What was asked for: a mode, the run's folder (None where there is none yet), its config and the bare flags."""

    mode: str
    workdir: pathlib.Path | None
    config: Config
    operands: dict[str, Any]
    config_was_given: bool


def parse(argv: Sequence[str]) -> Command:
    """Raises UsageError (exit 2) or WorldError (exit 1) with one line; `argv[0]` is the program's name.

    Every field of the config is checked by itself; what ties them together is `experiment.conditions`.
    """
    values, changes = read_words(argv[1:])
    mode = values["mode"] or "train"
    if mode not in MODES:
        raise UsageError(f"mode = {mode}: expected one of {', '.join(MODES)}")
    for name, (modes, _) in {**OPERANDS, **SWITCHES}.items():
        if values[name] is not None and mode not in modes:
            raise UsageError(
                f"{name} = {values[name]}: expected with --mode={' or --mode='.join(modes)} only, not with {mode}"
            )
    settings, workdir = resolve(mode, values)
    settings = overrides.apply(settings, changes, say)
    settings = configs.said(settings)
    for switch, field in (("eval_elbo", "eval.elbo"), ("eval_perplexity", "eval.perplexity")):
        if values[switch] is not None:
            settings[field] = values[switch]
    operands = {k: v for k, v in values.items() if k not in ("mode", "config", "workdir")}
    return Command(mode, workdir, configs.build(settings), operands, config_was_given=values["config"] is not None)


def help_text(topic: str = "") -> str:
    """Every flag with the modes that read it; for the topic "config" every field of a config."""
    if topic == "config":
        from dfm_jax.config import reference

        return reference.text()
    if topic:
        raise UsageError(f"help = {topic}: expected --help, or --help=config for the fields of a config")
    lines = ["python main.py --config=configs/NAME.py [--mode=MODE] [--FLAG=VALUE] [--config.GROUP.FIELD=VALUE]", ""]
    lines += [f"  --{name}=...  {text}" for name, text in EVERY_MODE.items()]
    lines += [f"  --{name}=...  {', '.join(modes)}: {text}" for name, (modes, text) in OPERANDS.items()]
    lines += [f"  --{name}  {', '.join(modes)}: {text}" for name, (modes, text) in SWITCHES.items()]
    lines += ["", "The fields of a config, with their units: --help=config. Installed: python -m dfm_jax."]
    return "\n".join(lines)


def read_words(words: Sequence[str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The values of the bare flags (None where a flag was not given) and the overrides (field, text).

    A value follows its name after "=" or as the next word, which may be anything that is no flag.
    """
    given: dict[str, str | bool] = {}
    changes: list[tuple[str, str]] = []
    left = list(reversed(words))
    while left:
        word = left.pop()
        if not word.startswith("-") or not word.strip("-"):
            gone(word)
            raise UsageError(f"{word}: expected flags that begin with --, such as --config=configs/quickstart.py")
        name, equals, text = word.lstrip("-").partition("=")
        value = text if equals else None
        if name.startswith("config."):
            name = name.removeprefix("config.")
            if value is None:
                value = left.pop() if left and not is_flag(left[-1]) else missing(f"config.{name}")
            changes.append((name, value))
            continue
        name, value = known(name, value)
        if name in SWITCHES:
            value = True if value is None else value
        elif value is None:
            if left and not is_flag(left[-1]):
                value = left.pop()
            else:
                value = ALONE.get(name) or missing(name)
        value = read_operand(name, value)
        if given.setdefault(name, value) != value and name not in LAST_HOLDS:
            raise UsageError(f"{name} = {value}: given before as {given[name]}; expected once")
        given[name] = value
    return {name: given.get(name) for name in FLAGS}, changes


def is_flag(word: str) -> bool:
    """Whether a word is a flag of this program, rather than a value that begins with a dash."""
    name = word.lstrip("-").partition("=")[0]
    return word.startswith("-") and (name in FLAGS or name.startswith("config.") or name.removeprefix("no") in SWITCHES)


def missing(name: str) -> NoReturn:
    raise UsageError(f"{name} = (missing): expected --{name}=VALUE")


def gone(name: str, value: str | None = None) -> None:
    """UsageError where `name` was once a flag, or is one in the reference."""
    if old := retired.of_name(name):
        now = old.note or f"--config.{old.to}=VALUE"
        raise UsageError(f"{name}{'' if value is None else f' = {value}'}: gone; expected {now}")


def known(name: str, value: str | None) -> tuple[str, str | None]:
    """The flag of a name, and its value; --noFLAG is --FLAG=false. UsageError where there is no such flag."""
    if name in FLAGS:
        return name, value
    if name.removeprefix("no") in SWITCHES and value is None:
        return name.removeprefix("no"), "false"
    gone(name, value)
    shown = name if value is None else f"{name} = {value}"
    if name in configs.TABLE:
        raise UsageError(f"{shown}: expected --config.{name}=VALUE for the config's fields")
    close = difflib.get_close_matches(name, FLAGS, 1)
    field = hints.meant(name)
    hint = close[0] if close else f"config.{field}" if field else ""
    raise UsageError(
        f"{shown}: expected one of --{', --'.join(FLAGS)}, or --config.GROUP.FIELD"
        + (f" (did you mean --{hint}?)" if hint else "")
    )


def read_operand(name: str, value: Any) -> Any:
    """The text of a flag as a number, a switch or a path."""
    if name in SWITCHES:
        if value is True or value.lower() in ("true", "t", "1", "yes", "on"):
            return True
        if value.lower() in ("false", "f", "0", "no", "off"):
            return False
        raise UsageError(f"{name} = {value}: expected true or false, or no value")
    if name in NUMBERS:
        if not (value.isascii() and value.isdigit()) or len(value) > 18:
            raise UsageError(f"{name} = {value}: expected an integer of 0 or more")
        return int(value)
    if not value.strip() and name not in MAY_BE_EMPTY:
        text = EVERY_MODE.get(name) or OPERANDS[name][1]
        raise UsageError(f"{name} = (empty): expected --{name}=VALUE, {text}")
    if name == "compare":
        return ",".join(os.path.expanduser(part.strip()) for part in value.split(","))
    return os.path.expanduser(value) if name in PATHS else value


def resolve(mode: str, values: dict[str, Any]) -> tuple[dict[str, Any], pathlib.Path | None]:
    """The config's fields, {"group.field": value}, and the run's folder that a command line means."""
    file, folder = values["config"], pathlib.Path(values["workdir"]) if values["workdir"] else None
    own = RUNS / pathlib.Path(file).stem if file else None
    if mode == "eval" and values["compare"]:
        return Config().flat(), folder
    if mode in ON_A_RUN:
        if folder is None and own is not None:
            if not is_run(own):
                raise UsageError(
                    f"config = {file}: there is no run of it in {own}; expected --workdir=RUN with the folder of a run"
                )
            folder = own
        folder = folder or newest_run()
        if folder is None:
            raise UsageError(
                f"workdir = (none): there is no run under {RUNS}/; expected the folder of a run, train one first"
            )
        if not is_run(folder):
            raise UsageError(f"workdir = {folder}: expected the folder of a run, with its config.json")
    if file:
        settings = configs.modern(configs.values_of(configs.load_file(str(find_config(file)))), say)
        if folder is None and mode in ("train", "import", "compile", "benchmark"):
            folder = own
        return settings, folder
    if folder is not None and is_run(folder):
        return configs.load_run(folder).flat(), folder
    if mode == "import":
        # The file itself tells the architecture; the rest is the published recipe.
        return Config().flat(), folder
    raise UsageError(f"config = (missing): expected --config=FILE, one of {configs.known_configs()}")


def is_run(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file()


def newest_run() -> pathlib.Path | None:
    """The run under `runs/` that was written to last."""
    runs = [p for p in RUNS.glob("*") if is_run(p)]

    def last_written(run: pathlib.Path) -> float:
        return max(p.stat().st_mtime for p in (run / "config.json", run / "metrics.jsonl") if p.exists())

    return max(runs, key=last_written, default=None)


def say(line: str) -> None:
    from dfm_jax.runtime.terminal import note  # which brings tqdm

    note(line)
