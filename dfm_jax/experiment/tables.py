"""The tables over the vocabulary that a run's path is made of, copied into its folder, which then is whole."""

import hashlib
import pathlib

import numpy as np

from dfm_jax.config import Config
from dfm_jax.experiment import embeddings as vectors
from dfm_jax.experiment import unigram
from dfm_jax.runtime import files
from dfm_jax.runtime.errors import WorldError

FOLDER = "tables"  # of a run: NAME.npy for each table, and INDEX
INDEX = "index.json"  # NAME: {"origin": what the config said, "sha256": of the file}; written last


def origins(config: Config) -> dict[str, str]:
    """The tables that the config reads from outside, each an argument of `problem.get_problem`, and where from."""
    found = {}
    if config.flow.source_distribution == "unigram":
        found["law"] = "unigram"  # of data.train: a corpus may move, its fingerprint may not change
    if config.flow.path == "genmd4" and config.flow.exponents.endswith(".npy"):
        found["exponents"] = config.flow.exponents
    if config.flow.path == "metric" and not config.flow.embeddings.startswith("random:"):
        found["embeddings"] = config.flow.embeddings
    return found


def read(name: str, config: Config, vocab_size: int) -> np.ndarray:
    """law (V,), exponents (V,) or embeddings (V, D) of unit length, from where the config says.

    Raises:
        WorldError: naming the field, where there is no such file or run, or it is of another vocabulary.
    """
    if name == "law":
        return unigram.law(config)
    if name == "exponents":
        return files.load_array(config.flow.exponents, (vocab_size,), "config.flow.exponents")
    return vectors.embeddings(config, vocab_size)


def of_run(config: Config, vocab_size: int, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The tables of the config: the run's own copies, and from where the config says what `folder` has no copy of.

    Raises:
        WorldError: as `read`, or a copy is not what was written.
    """
    index = folder / FOLDER / INDEX
    kept = files.read_json(index) if index.exists() else {}
    found = {}
    for name, origin in origins(config).items():
        if kept.get(name, {}).get("origin") == origin:
            found[name] = _copy(folder / FOLDER / f"{name}.npy", kept[name]["sha256"])
        else:
            found[name] = read(name, config, vocab_size)
    return found


def keep(tables: dict[str, np.ndarray], config: Config, folder: pathlib.Path) -> None:
    """Copies the tables of the config into the run's folder; a copy that is there stays as it is."""
    if not tables:
        return
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    kept = files.read_json(place / INDEX) if (place / INDEX).exists() else {}
    for name, origin in origins(config).items():
        if kept.get(name, {}).get("origin") != origin:
            files.save_array(place / f"{name}.npy", tables[name])
            kept[name] = {"origin": origin, "sha256": _sha256(place / f"{name}.npy")}
    files.write_json_atomically(place / INDEX, kept)


def _copy(file: pathlib.Path, sha256: str) -> np.ndarray:
    if not file.is_file() or _sha256(file) != sha256:
        raise WorldError(f"{file}: expected the file that the run wrote, with sha256 {sha256}")
    return np.load(file, allow_pickle=False)


def _sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
