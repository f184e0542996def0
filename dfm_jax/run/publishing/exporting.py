"""A run as a folder that others can load: in our own form for the hub, or in the layout of MDLM."""

import contextlib
import pathlib
import shutil
from collections.abc import Callable, Iterator

from dfm_jax.checkpoints import pytorch
from dfm_jax.checkpoints.published import hub, writing
from dfm_jax.checkpoints.published.layouts import OURS
from dfm_jax.config import Config
from dfm_jax.data.tokenizers import changed, hf_files
from dfm_jax.experiment import tables
from dfm_jax.run.load import Run, load_with
from dfm_jax.run.publishing import card, convert
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import UsageError, WorldError
from dfm_jax.runtime.terminal import note


def export(
    config: Config,
    workdir: pathlib.Path,
    *,
    step: int | None = None,
    kind: str = "",
    output: str | None = None,
    push: str | None = None,
    license: str | None = None,
) -> pathlib.Path:
    """Writes a run's checkpoint for others; the file or the folder. Kinds of files are those of `convert.export`.

    Args:
        kind: 'hub', 'mdlm', or a name of `layouts.LAYOUTS`.
        output: the file or folder; None is RUN/export/step_N with an ending.
        push: OWNER/NAME of the hub, to upload the folder to.
        license: of the weights, an id of the hub's list, for the model card; None is 'unknown'.

    Raises:
        UsageError: the format cannot hold the run, `output` has files already, or a flag is for another format.
        WorldError: there is no such checkpoint, the folder cannot be written, or the hub does not take it.
    """
    if kind not in FOLDERS:
        for flag, value in (("push", push), ("license", license)):
            if value is not None:
                raise UsageError(f"{flag} = {value}: expected with --format=hub or --format=mdlm only")
        return convert.export(config, workdir, step=step, kind=kind, output=output)
    check, write = FOLDERS[kind]
    check(config)
    if push is not None and not hub.is_repository(push):
        raise UsageError(f"push = {push}: expected OWNER/NAME of the hub")
    run = load_with(config, workdir, step=step)
    folder = pathlib.Path(output) if output else workdir / "export" / f"step_{run.step}_{kind}"
    name = push.removeprefix(hub.PREFIX) if push else folder.name
    with whole(folder) as part:
        write(run, part)
        text = card.write(run, name, license or "unknown") if kind == "hub" else _mdlm_card(license or "unknown")
        files.write_atomically(part / "README.md", text, durable=True)
    note(f"{folder}: step {run.step}, ready to upload")
    if push is not None:
        note(f"{hub.push(folder, push, f'Step {run.step}')}: uploaded")
    return folder


@contextlib.contextmanager
def whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill beside `folder`, which then has its name; it appears whole or not at all.

    Raises UsageError where `folder` has files already, WorldError where nothing can be written beside it.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"output = {folder}: expected a new or empty folder")
    folder = folder.absolute()
    files.ensure_writable(folder.parent, field="output")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
        files.sync_folder(folder.parent)
    except OSError as error:
        raise WorldError(
            f"output = {folder}: {error.strerror or error}; expected a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_hub(run: Run, folder: pathlib.Path) -> None:
    config = run.config
    network = convert.network(config)
    pytorch.write_weights(
        folder / "model.safetensors", run.model, config=run.model.config, step=run.step, network=network
    )
    size = run.tokenizer.vocab_size
    tables.keep(tables.of_run(config, size, pathlib.Path(run.folder)), config, folder)
    _copy_tokenizer(run, folder)
    content = {
        "model_type": OURS,
        "architectures": [OURS],
        "library_name": OURS,
        "vocab_size": run.model.config.vocab_size,
        "step": run.step,
        "run": config.to_dict(),
    }
    files.write_json_atomically(folder / "config.json", content, durable=True)


def _copy_tokenizer(run: Run, folder: pathlib.Path) -> None:
    hf_files.copy_files(hf_files.kept(run.config.tokenizer.name, pathlib.Path(run.folder)), folder)


def _check_hub(config: Config) -> None:
    """Every run can be written in our own form."""


def _check_mdlm(config: Config) -> None:
    """UsageError for the first field that MDLM's code would read as something else."""
    model, flow = config.model, config.flow
    expected = {"flow.source_distribution": "mask", "flow.path": "mixture", "model.suppress_mask_logit": True}
    if model.parametrization == "leave_one_out":
        del expected["model.suppress_mask_logit"]  # it never gives the mask any probability
    if model.time_conditioning:
        expected["model.time_input"] = "sigma"
    expected |= {"model.time_scale": 1.0, "model.qk_norm": False, "model.tie_embeddings": False, "model.mlp_ratio": 4}
    for field, value in expected.items():
        if config[field] != value:
            raise UsageError(f"config.{field} = {config[field]}: expected {value} with --format=mdlm")
    if flow.exponents == "learned" and flow.path == "genmd4":
        raise UsageError("config.flow.exponents = learned: expected none with --format=mdlm")


def _write_mdlm(run: Run, folder: pathlib.Path) -> None:
    change = changed.parts(run.config.tokenizer.name)
    mask_id = change[2] if change is not None and change[1] == "without" else None
    try:
        writing.write(folder, run.model, run.model.config, mask_id=mask_id)
    except ValueError as error:
        raise UsageError(f"format = mdlm: {error}") from error
    _copy_tokenizer(run, folder)


def _mdlm_card(license: str) -> str:
    return (
        f'---\nlicense: "{license}"\ntags:\n- discrete-diffusion\n---\n\n'
        "Weights in the layout of MDLM, written by `dfm_jax`. `kuleshov-group/mdlm-owt` has the modelling code:\n\n"
        '```python\nimport transformers\n\nmodel = transformers.AutoModelForMaskedLM.from_pretrained("FOLDER", '
        "trust_remote_code=True)\n```\n"
    )


FOLDERS: dict[str, tuple[Callable[[Config], None], Callable[[Run, pathlib.Path], None]]] = {
    "hub": (_check_hub, _write_hub),
    "mdlm": (_check_mdlm, _write_mdlm),
}
