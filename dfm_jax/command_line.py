"""`python main.py --config=... --mode=... --config.group.field=value`: from words to a checked command.

A run's settings are `--config.*` and are saved with it; what a mode works on is a bare flag.
"""

import ast
import dataclasses
import difflib
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from dfm_jax.errors import UsageError

RUNS = pathlib.Path("runs")
MODES = ("train", "prepare", "eval", "sample", "import", "export", "compile", "benchmark")
# Modes that work on a finished or running run, and take its saved config when no other is named.
ON_A_RUN = ("eval", "sample", "export")

# Flag -> (modes that read it, help).
OPERANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "step": (("eval", "sample", "export"), "checkpoint to use; the newest if not given"),
    "from": (("import",), "checkpoint file of the PyTorch reference, or a safetensors file"),
    "format": (("export",), "safetensors (default) or pytorch"),
    "output": (("export",), "file to write; RUN/export/step_N.* if not given"),
    "prompt": (("sample",), "text to continue, or a text with <gap:N> where N tokens are to be filled in"),
    "prompt_file": (("sample",), "file that holds the prompt"),
    "compare": (("eval",), "RUN,RUN,...: print their reports side by side and evaluate nothing"),
    "shard": (("prepare",), "i/n: prepare part i of n; a last call without it joins the parts"),
    "target": (("compile",), "CHIP:GPUS or CHIP:NODESxGPUS to compile for, such as h100:8 or h100:2x8"),
    "sweep": (("compile",), "compile many variants and print what fits: all, or some of mesh,batch,remat"),
    "only": (("benchmark",), "NAME,NAME,...: the benchmarks to run; all if not given"),
    "seconds": (("benchmark",), "what is not measured by then is named; 480 if not given, 0 is no end"),
}
SWITCHES: dict[str, tuple[tuple[str, ...], str]] = {
    "verify": (("prepare",), "read every shard and compare its checksum with the manifest"),
    "trim": (("sample",), "end each text at its first end of text"),
    "frontier": (("eval",), "sweep temperature and steps, and plot perplexity against entropy"),
    "eval_elbo": (("eval",), "estimate the likelihood (config.eval.elbo)"),
    "eval_perplexity": (("eval",), "generate samples and judge them (config.eval.perplexity)"),
    "trace": (("benchmark",), "write a jax.profiler trace of each benchmark"),
}
# Operands that are integers of 0 or more; the others are text.
NUMBERS = ("step", "seconds", "num_processes", "process_id")
# Operands that may stand without a value, and what they then mean.
ALONE = {"--sweep": "--sweep=all"}
EVERY_MODE: dict[str, str] = {
    "mode": f"one of {', '.join(MODES)}",
    "config": "a file under configs/",
    "workdir": "folder of the run; runs/NAME for training, the newest run for eval and sample",
    "coordinator": "HOST:PORT of process 0, when several processes train together outside Slurm",
    "num_processes": "how many processes train together",
    "process_id": "which of them this is, from 0",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """What was asked for: a mode, the run's folder (None where there is none yet), its config and the bare flags."""

    mode: str
    workdir: pathlib.Path | None
    config: ConfigDict
    operands: dict[str, Any]
    config_was_given: bool


def parse(argv: Sequence[str]) -> Command:
    """Raises UsageError (exit 2) or WorldError (exit 1) with one line; `argv[0]` is the program's name."""
    words, overrides = split_overrides(argv[1:])
    values = parse_flags(words)
    mode = values["mode"] or "train"
    if mode not in MODES:
        raise UsageError(f"mode={mode}: accepted is one of {', '.join(MODES)}")
    for name, (modes, _) in {**OPERANDS, **SWITCHES}.items():
        if values[name] is not None and mode not in modes:
            raise UsageError(
                f"{name}={values[name]}: accepted with --mode={' or --mode='.join(modes)} only, not with {mode}"
            )
    config, workdir = resolve(mode, values["config"], values["workdir"], values)
    apply_overrides(config, overrides)
    for switch, field in (("eval_elbo", "elbo"), ("eval_perplexity", "perplexity")):
        if values[switch] is not None:
            config.eval[field] = values[switch]
    operands = {k: v for k, v in values.items() if k not in ("mode", "config", "workdir")}
    return Command(mode, workdir, config, operands, config_was_given=values["config"] is not None)


def help_text() -> str:
    """Every flag with the modes that read it."""
    lines = ["python main.py --config=configs/NAME.py [--mode=MODE] [--FLAG=VALUE] [--config.GROUP.FIELD=VALUE]", ""]
    lines += [f"  --{name}=...  {text}" for name, text in EVERY_MODE.items()]
    lines += [f"  --{name}=...  {', '.join(modes)}: {text}" for name, (modes, text) in OPERANDS.items()]
    lines += [f"  --{name}  {', '.join(modes)}: {text}" for name, (modes, text) in SWITCHES.items()]
    return "\n".join(
        [*lines, "", "The fields of a config, with their units: configs/base.py. Installed: python -m dfm_jax."]
    )


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--config.group.field=value` (also as two words) from the other words."""
    rest, overrides, waiting = [], [], None
    for word in words:
        if waiting is not None:
            overrides.append((waiting, word))
            waiting = None
        elif word.lstrip("-").startswith("config.") and word.startswith("-"):
            name, equals, value = word.lstrip("-").removeprefix("config.").partition("=")
            if equals:
                overrides.append((name, value))
            else:
                waiting = name
        else:
            rest.append(word)
    if waiting is not None:
        raise UsageError(f"config.{waiting}=(missing): accepted is --config.{waiting}=VALUE")
    return rest, overrides


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """Values of the bare flags; None where a flag was not given."""
    from dfm_jax.config import GONE

    for word in words:
        name = word.lstrip("-").partition("=")[0]
        if name in GONE:
            raise UsageError(f"{word.lstrip('-')}: gone; accepted is: {GONE[name]}")
        if word.startswith("-") and "." in name:
            raise UsageError(f"{word.lstrip('-')}: accepted is --config.{name}=VALUE for the config's fields")
    values = flags.FlagValues()
    for name in (*EVERY_MODE, *OPERANDS):
        if name in NUMBERS:
            flags.DEFINE_integer(name, None, "", lower_bound=0, flag_values=values)
        else:
            flags.DEFINE_string(name, None, "", flag_values=values)
    for name in SWITCHES:
        flags.DEFINE_boolean(name, None, "", flag_values=values)
    try:
        left = values(["main.py", *(ALONE.get(word, word) for word in words)])
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, list(values), 1)
        hint = f" (did you mean --{close[0]}?)" if close else ""
        stripped = (word.lstrip("-") for word in words)
        given = next((word for word in stripped if word.startswith(error.flagname)), error.flagname)
        raise UsageError(f"{given}: accepted flags are --{', --'.join(values)}{hint}") from error
    except flags.IllegalFlagValueError as error:
        # absl's text is 'flag --step=x: why'. Only whole numbers and switches can be wrong.
        text = " ".join(str(error).split()).removeprefix("flag --").split(": ")[0]
        accepted = "an integer of 0 or more" if text.partition("=")[0] in NUMBERS else "true or false, or no value"
        raise UsageError(f"{text}: accepted is {accepted}") from error
    except flags.Error as error:
        text = " ".join(str(error).split()).removeprefix("flag --")
        raise UsageError(f"{text}; accepted is --FLAG=VALUE, see --help") from error
    if left[1:]:
        raise UsageError(f"{left[1]}: accepted are flags that begin with --, such as --config=configs/quickstart.py")
    return {name: values[name].value for name in values}


def resolve(
    mode: str, config_file: str | None, workdir: str | None, values: dict[str, Any]
) -> tuple[ConfigDict, pathlib.Path | None]:
    """The config and the run's folder that a command line means."""
    from dfm_jax import config as configs

    folder = pathlib.Path(workdir) if workdir else None
    if mode == "eval" and values["compare"]:
        from dfm_jax.configs import base

        return base.get_config(), folder
    if mode in ON_A_RUN:
        if folder is None and config_file and is_run(RUNS / pathlib.Path(config_file).stem):
            folder = RUNS / pathlib.Path(config_file).stem
        folder = folder or newest_run()
        if folder is None:
            raise UsageError(
                f"workdir=(none): accepted is the folder of a run; there is none under {RUNS}/, train one first"
            )
        if not is_run(folder):
            raise UsageError(f"workdir={folder}: accepted is the folder of a run, with its config.json")
    if config_file:
        config = configs.load_file(str(find_config(config_file)))
        if mode in ("train", "import", "compile", "benchmark"):
            folder = folder or RUNS / pathlib.Path(config_file).stem
    elif folder is not None and is_run(folder):
        config = configs.load_run(folder)
    elif mode == "import":
        # The file itself tells the architecture; the rest is the published recipe.
        from dfm_jax.configs import base

        config = base.get_config()
    else:
        raise UsageError(f"config=(missing): accepted is --config=FILE, one of {configs.known_configs()}")
    return config, folder


def find_config(path: str) -> pathlib.Path:
    """`path`, or where it does not exist the bundled file of that name: 'configs/NAME.py', or NAME alone."""
    from dfm_jax.config import bundled_configs

    if not pathlib.Path(path).exists():
        name = path.removeprefix("configs/").removesuffix(".py")
        if (bundled := bundled_configs() / f"{name}.py").is_file():
            return bundled
    return pathlib.Path(path)


def is_run(folder: pathlib.Path) -> bool:
    return (folder / "config.json").is_file()


def newest_run() -> pathlib.Path | None:
    """The run under `runs/` that was written to last."""
    runs = [p for p in RUNS.glob("*") if is_run(p)]

    def last_written(run: pathlib.Path) -> float:
        return max(p.stat().st_mtime for p in (run / "config.json", run / "metrics.jsonl") if p.exists())

    return max(runs, key=last_written, default=None)


def apply_overrides(config: ConfigDict, overrides: Sequence[tuple[str, str]]) -> None:
    """Sets each field to its text, read as the type that the field has."""
    from dfm_jax.config import GONE, fields

    for name, text in overrides:
        for gone, answer in GONE.items():
            if name == gone or name.startswith(gone + "."):
                raise UsageError(f"config.{name}={text}: gone; accepted is: {answer}")
        known = fields(config)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, cutoff=0.5)
            hint = f" (did you mean config.{close[0]}?)" if close else ""
            group = name.partition(".")[0]
            names = [k for k in known if k.startswith(group + ".")] or list(config)
            raise UsageError(f"config.{name}={text}: accepted is a field that exists{hint}: {', '.join(names)}")
        group, _, field = name.partition(".")
        config[group][field] = read_value(name, text, known[name])


def read_value(name: str, text: str, old: Any) -> Any:
    """`text` as the type of `old`; UsageError where it is none."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off"):
            return False
        raise UsageError(f"config.{name}={text}: accepted is true or false")
    if isinstance(old, tuple):
        if text[:1] in "([" and text[-1:] in ")]":
            try:
                return tuple(str(item) for item in ast.literal_eval(text))
            except (ValueError, SyntaxError, TypeError):
                text = text[1:-1]
        return tuple(item.strip() for item in text.split(",") if item.strip())
    kind, what = (int, "an integer") if isinstance(old, int) else (float, "a number")
    try:
        return kind(text.replace("_", ""))
    except ValueError:
        pass
    # 1e6 is a whole number, whatever its spelling.
    try:
        if kind is int and float(text) == int(float(text)):
            return int(float(text))
    except (ValueError, OverflowError):
        pass
    raise UsageError(f"config.{name}={text}: accepted is {what}")
