"""The whole evaluation of a run: the likelihood of each corpus, and samples and real text, both judged."""

import dataclasses
import functools
import math
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dfm_jax.data import Batch, RecordStream, Tokenizer, TokenStream, eval_batches, get_tokenizer
from dfm_jax.evaluation.baselines import Baselines
from dfm_jax.evaluation.diversity import diversity
from dfm_jax.evaluation.generation import Generator, Samples, SamplingSettings, mean_evaluations
from dfm_jax.evaluation.judge import mauve
from dfm_jax.evaluation.judge.perplexity import Judge, load_judge
from dfm_jax.evaluation.likelihood import LikelihoodEstimator, LikelihoodResult
from dfm_jax.evaluation.loss import EvaluationLoss
from dfm_jax.evaluation.network import Network, TransformerNetwork
from dfm_jax.evaluation.prompts import Prompt
from dfm_jax.evaluation.report import pictures
from dfm_jax.evaluation.report.markdown import (
    Report,
    as_filed,
    likelihood_entry,
    render_markdown,
    text_entry,
    write_report,
)
from dfm_jax.evaluation.report.samples import sample_set, write_samples
from dfm_jax.evaluation.settings import EvaluationSettings
from dfm_jax.experiment.problem import Problem
from dfm_jax.models.transformer import Transformer
from dfm_jax.runtime.errors import WorldError
from dfm_jax.runtime.mesh import described
from dfm_jax.runtime.rng import noise_key
from dfm_jax.runtime.terminal import Countdown, Heartbeat

FRAMES = 65  # states of each trajectory that the page shows


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates a run at any of its steps. Compiled programs and the judge are kept between calls.

    workdir: the folder of reports and samples. open_corpus: returns the token stream for a corpus's name in the config;
    it may raise WorldError; "" is the run's own validation text. note: prints a line. show: prints the report, before
    it is written. name: of the run, if it is not the folder's. label: what the report calls a corpus. baselines: of a
    corpus's text, if they are known.
    """

    settings: EvaluationSettings
    problem: Problem
    tokenizer: Tokenizer
    mesh: Mesh
    workdir: pathlib.Path
    open_corpus: Callable[[str], TokenStream]
    note: Callable[[str], None] = print
    show: Callable[[str], None] = print
    name: str = ""
    label: Callable[[str], str] = lambda corpus: corpus or "data.valid"
    baselines: Callable[[TokenStream], Baselines | None] = lambda stream: None

    @property
    def run(self) -> str:
        """The run's name, in titles."""
        return self.name or self.workdir.name

    # What the trainer calls at its intervals.

    def loss(self, model: Transformer, validation: TokenStream) -> dict[str, float]:
        """`eval/loss` over all of `validation`, nats per token on fixed noise, and the rest of `EvaluationLoss`."""
        batches = self._batches(validation)
        with Heartbeat(lambda: "still at the loss of the validation text", self.note):
            return self._evaluation_loss(model, batches, key=noise_key(self.settings.seed, "likelihood"))

    def samples(self, model: Transformer, step: int, num: int | None = None) -> dict[str, float]:
        """Generates `num` sequences (None: `sampling.num`) into samples/step_N.*, judges them, and returns metrics."""
        tokens = self._generate(model, step, num or self.settings.num_training_samples).tokens
        entry = self._judge_texts(tokens, [])
        names = ("ppl_mean_of_exp", "ppl_token_mean", "entropy_bits", "repetition")
        return {f"eval/{name}": entry[name] for name in names if entry[name] is not None}

    # What `--mode=eval` calls.

    def evaluate(self, model: Transformer, step: int, *, elbo: bool, perplexity: bool) -> Report:
        """Evaluates what the config asks for, shows it, and writes eval/step_N.json, eval/report.md and the plots.

        elbo: with the likelihood. perplexity: with samples and their judge. If a corpus or the judge's weights are not
        there, that part is left out and the report names it. Raises WorldError if nothing could be evaluated.
        """
        started, missing = time.monotonic(), []
        fingerprints: dict[str, str] = {}
        likelihood: dict[str, dict[str, Any]] = {}
        curves: dict[str, dict[str, LikelihoodResult]] = {}
        for given in self.settings.corpora if elbo else ():
            corpus = self.label(given)
            try:
                stream = self.open_corpus(given)
                results = self.likelihood(model, stream)
            except WorldError as error:
                missing.append(f"likelihood of {corpus}: {error}")
                continue
            fingerprints[corpus] = stream.fingerprint
            likelihood[corpus] = likelihood_entry(results)
            if (known := self.baselines(stream)) is not None:
                likelihood[corpus]["baselines"] = known.entry()
            first = next(iter(results.values()))
            self.note(f"{corpus}: {first.nats_per_token:.4f} nats per token, perplexity {first.perplexity:.2f}")
            curves[corpus] = results
        generation: dict[str, Any] = {}
        if perplexity:
            drawn = self._generate(model, step, self.settings.num_samples)
            generation = self._judge_texts(drawn.tokens, missing)
            real = self._real_text(missing)
            generation["real_text"] = None if real is None else self._judge_texts(real, [])
            generation["mauve"] = self._mauve(drawn.tokens, real)
            generation["settings"] = self.settings.sampling.describe()
            generation["evaluations"] = mean_evaluations(drawn.evaluations)
            generation["judge"] = self.settings.judge or None
        if missing and not likelihood and not generation:
            raise WorldError(missing[0])
        report = Report(
            run=self.run,
            step=step,
            likelihood=likelihood,
            generation=generation,
            missing=tuple(missing),
            provenance=self._provenance(fingerprints, time.monotonic() - started),
        )
        if jax.process_index() == 0:
            self.show(
                render_markdown(as_filed(report))
            )  # a folder that has become full or read-only must not cost the figures
            for corpus, results in curves.items():
                self._draw(f"elbo_{_file_name(corpus)}_step_{step}.png", results, corpus)
            self.note(f"report: {write_report(self.workdir, report).with_name('report.md')}")
        return report

    def likelihood(self, model: Transformer, stream: TokenStream) -> dict[str, LikelihoodResult]:
        """The bounds of the problem on every block of `stream`, by name. Raises WorldError if it has no whole block."""
        blocks = self._num_blocks(stream)
        if not blocks:
            raise WorldError(
                f"{stream.manifest.corpus}: shorter than one block of {self.settings.sampling.length} tokens"
            )
        what = f"likelihood of {stream.manifest.corpus} at {self.settings.time_points:,} times"
        with Countdown(what, blocks, "blocks", self.note) as progress:
            return self._estimator(
                model,
                self._batches(stream),
                key=noise_key(self.settings.seed, "likelihood"),
                count_bytes=lambda row: len(self.tokenizer.decode_bytes(row)),
                progress=progress,
            )

    def frontier(
        self,
        model: Transformer,
        step: int,
        *,
        temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 1.0, 1.1),
        steps: tuple[int, ...] = (),
        samplers: Sequence[tuple[str, str]] = (),
        num: int | None = None,
    ) -> list[dict[str, Any]]:
        """Judges samples over temperatures, numbers of steps and samplers, and draws eval/frontier_step_N.png.

        steps: by default the config's number, a quarter and a sixteenth of it. samplers: (method, corrector) pairs, by
        default the config's own. num: samples per point. Returns a dictionary per point, with the mean `evaluations` of
        the network, `sequential` ones and `head_rows` of a sequence. Raises WorldError without a judge.
        """
        if self._judge is None:
            raise WorldError(self._judge_failure)
        sampling = self.settings.sampling
        most = sampling.steps
        points = []
        many = num or self.settings.num_samples
        for method, corrector in samplers or [(sampling.method, sampling.corrector)]:
            for count in steps or sorted({max(1, most // 16), max(1, most // 4), most}):
                for temperature in temperatures:
                    point = {"method": method, "corrector": corrector, "steps": count, "temperature": temperature}
                    generator = self._generator_of(dataclasses.replace(sampling, **point))
                    name = " + ".join(filter(None, (method, corrector)))
                    what = f"frontier: {name}, temperature {temperature}"
                    with Countdown(what, many, f"of {count:,} steps", self.note) as progress:
                        drawn = write_samples(None, generator, model, many, self.tokenizer, progress=progress)
                    point |= mean_evaluations(drawn.evaluations)
                    points.append(point | self._judge_texts(drawn.tokens, []))
                    self.note(
                        f"{what}, {count} steps: {points[-1]['ppl_token_mean']:.1f} for {point['evaluations']:.1f} "
                        "evaluations"
                    )
        real = self._real_text([])
        if jax.process_index() == 0:
            path = self._picture(f"frontier_step_{step}.png")
            known = None if real is None else self._judge_texts(real, [])
            pictures.frontier(path, points, f"{self.run}, step {step:,}", known)
        return points

    # The parts, each made once.

    @functools.cached_property
    def _network(self) -> Network:
        head = self.settings.head
        return TransformerNetwork(None if head == "auto" else head, self.mesh)

    @functools.cached_property
    def _estimator(self) -> LikelihoodEstimator:
        points = self.settings.time_points
        return LikelihoodEstimator(
            self.problem, points, network=self._network, mesh=self.mesh, deterministic=self.settings.deterministic
        )

    @functools.cached_property
    def _evaluation_loss(self) -> EvaluationLoss:
        return EvaluationLoss(self.problem, self._network, self.mesh, self.settings.deterministic)

    @property
    def _sample_batch(self) -> int:
        return self.settings.sample_batch_size * self.mesh.size

    @functools.cached_property
    def _generator(self) -> Generator:
        return self._generator_of(self.settings.sampling, frames=FRAMES)

    def _generator_of(self, sampling: SamplingSettings, *, frames: int = 0) -> Generator:
        deterministic = self.settings.deterministic
        return Generator(
            self.problem, sampling, self._sample_batch, self.mesh, frames=frames, deterministic=deterministic
        )

    @functools.cached_property
    def _loaded(self) -> tuple[Judge | None, str]:
        name = self.settings.judge
        if not name:
            return None, "config.eval.judge = (none): expected the name or folder of a GPT-2"
        try:
            model, tokenizer = load_judge(name), get_tokenizer("gpt2")
        except WorldError as error:
            self.note(f"no judge: {error}")
            return None, str(error)
        batch = self.settings.perplexity_batch_size * self.mesh.size
        deterministic = self.settings.deterministic
        return Judge(model, tokenizer, batch_size=batch, mesh=self.mesh, deterministic=deterministic), ""

    @property
    def _judge(self) -> Judge | None:
        return self._loaded[0]

    @property
    def _judge_failure(self) -> str:
        return self._loaded[1]

    def _num_blocks(self, stream: TokenStream) -> int:
        """How many blocks of the stream are looked at."""
        blocks = len(stream.blocks(self.settings.sampling.length))
        return min(blocks, self.settings.max_blocks or blocks)

    def _batches(self, stream: TokenStream) -> Iterator[tuple[Batch, np.ndarray]]:
        """The batches of the stream's blocks, with weights 0 or 1. A small corpus makes a smaller batch."""
        length = self.settings.sampling.length
        devices = math.lcm(self.mesh.shape["data"] * self.mesh.shape["fsdp"], jax.process_count())
        wanted = min(self.settings.batch_size, self._num_blocks(stream))
        return eval_batches(
            stream,
            length=length,
            batch_size=max(1, -(-wanted // devices)) * devices,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            max_blocks=self.settings.max_blocks,
            evenly=True,
        )

    def _generate(self, model: Transformer, step: int, num: int) -> Samples:
        with Countdown("samples", num, f"of {self.settings.sampling.steps:,} steps", self.note) as progress:
            return write_samples(
                sample_set(self.workdir / "samples", step) if jax.process_index() == 0 else None,
                self._generator,
                model,
                num,
                self.tokenizer,
                prompts=self._prompts(num),
                trim=self.settings.records,
                title=f"{self.run} · step {step:,}",
                settings={"step": step, "source": "uniform" if self.problem.source.mask_id is None else "mask"},
                progress=progress,
            )

    def _prompts(self, num: int) -> list[Prompt]:
        """The prompts of the first records of the validation text, for a run that trains on records; else none."""
        if not self.settings.records:
            return []
        try:
            stream = self.open_corpus("")
        except WorldError:
            return []
        if not isinstance(stream, RecordStream):
            return []
        rows, prompts = stream.blocks(self.settings.sampling.length), []
        for number in range(min(num, len(rows))):
            fixed = np.arange(rows.length) < rows.given(number)
            prompts.append(Prompt(np.where(fixed, rows[number], 0).astype(np.int32), fixed))
        return prompts

    def _judge_texts(self, tokens: np.ndarray, missing: list[str]) -> dict[str, Any]:
        judged = None
        if self._judge is not None:
            with Heartbeat(lambda: f"the judge is still reading {len(tokens):,} texts", self.note):
                judged = self._judge(tokens, self.tokenizer)
        elif self.settings.judge:  # without a judge in the config, none is missing
            missing.append(f"generative perplexity: {self._judge_failure}")
        return text_entry(judged, diversity(tokens), len(tokens))

    def _mauve(self, tokens: np.ndarray, real: np.ndarray | None) -> dict[str, Any]:
        """MAUVE of samples (N, L) against real text as JSON; its value is null, with the reason, if it has none."""
        if self._judge is None:
            return {"value": None, "reason": self._judge_failure}
        if real is None:
            return {"value": None, "reason": "there is no real text"}
        if mauve.library() is None:  # before the features are computed
            names = " or ".join(mauve.LIBRARIES)
            return {"value": None, "reason": f"expected {names} to be installed (pip install dfm-jax[mauve])"}
        try:
            features = [self._judge.features(texts, self.tokenizer) for texts in (tokens, real)]
            found = mauve.mauve(*features)
        except ValueError as error:
            return {"value": None, "reason": " ".join(str(error).split())}
        return found._asdict()

    def _real_text(self, missing: list[str]) -> np.ndarray | None:
        """As many validation blocks as there are samples, at most all of them, (n, L) int32."""
        try:
            blocks = self.open_corpus("").blocks(self.settings.sampling.length)
        except WorldError as error:
            missing.append(f"real text: {error}")
            return None
        count = min(len(blocks), self.settings.num_samples)
        return np.stack([np.asarray(blocks[i], np.int32) for i in range(count)]) if count else None

    def _picture(self, name: str) -> pathlib.Path:
        folder = self.workdir / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def _draw(self, name: str, results: dict[str, LikelihoodResult], corpus: str) -> None:
        pictures.contribution(self._picture(name), results, f"{self.run}: bounds on {corpus}")

    def _provenance(self, fingerprints: dict[str, str], seconds: float) -> dict[str, Any]:
        return {
            "corpus fingerprints": fingerprints,
            "noise seed of the likelihood": self.settings.seed,
            "devices": described(self.mesh),
            "versions": {
                "python": platform.python_version(),
                **{name: metadata.version(name) for name in ("jax", "flax", "numpy")},
            },
            "seconds": round(seconds, 1),
            "finished": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "config": dict(self.settings.config),
        }


def _file_name(corpus: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in corpus)[-60:]
