"""A run with a tokenizer.json: it trains, keeps the files, and continues, evaluates and samples when they are gone."""

import json
import pathlib
import shutil

import pytest

import dfm_jax
from dfm_jax import cli
from dfm_jax.cli import command_line
from dfm_jax.runtime.errors import WorldError

tokenizers = pytest.importorskip("tokenizers")
TINY = {
    **{"model.hidden_size": 32, "model.cond_dim": 16, "model.length": 16, "model.n_blocks": 1, "model.n_heads": 2},
    **{"training.batch_size": 4, "training.snapshot": 2, "training.eval_freq": 0, "training.perplexity_freq": 0},
    **{
        "optim.warmup": 1,
        "flow.sampling_steps": 4,
        "eval.time_points": 2,
        "eval.perplexity": False,
        "eval.elbo": False,
    },
    **{"eval.judge": "", "sampling.num": 2, "sampling.batch_size": 2, "data.num_workers": 1, "logging.log_freq": 1},
}
TEXT = "the quick brown fox jumps over the lazy dog and runs away from the old house\n" * 60


def main(*words: str) -> int:
    return cli.run(command_line.parse(["main.py", *words]))


@pytest.mark.slow
def test_a_run_goes_on_without_the_folder_it_came_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    options = {"vocab_size": 300, "special_tokens": ["<|endoftext|>"], "show_progress": False}
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT], tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, **options))
    (tmp_path / "own").mkdir()
    made.save(str(tmp_path / "own" / "tokenizer.json"))
    (tmp_path / "own" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    fields = {**TINY, "tokenizer.name": "hf:own", "data.train": text, "data.valid": text, "data.cache_dir": "cache"}
    words = [f"--config.{name}={value}" for name, value in fields.items()]
    assert main("--config=uniform_gkl", "--workdir=run", *words, "--config.optim.n_iters=2") == 0
    assert (tmp_path / "run" / "tokenizer" / "tokenizer_config.json").is_file()

    shutil.move("run", "moved")
    shutil.rmtree("own")
    run = dfm_jax.load("moved")
    end = run.tokenizer.eos_id
    assert run.config.tokenizer.name == f"hf:{pathlib.Path('moved') / 'tokenizer'}"
    assert run.tokenizer.encode_batch(["the fox"])[0].tolist() == made.encode("the fox").ids
    (sample,) = run.sample_tokens(1, prompts=(special_prompt(run, "the fox<|endoftext|>"),))
    assert end in sample[:8]
    texts = run.sample(1, prompt="the fox<|endoftext|>", prompt_special=True)
    assert texts[0].startswith("the fox<|endoftext|>")
    # The same run continues, of its own folder alone, on the shards that are there.
    assert main("--workdir=moved", "--config.optim.n_iters=4") == 0
    assert dfm_jax.load("moved").step == 4
    assert main("--mode=sample", "--workdir=moved", "--prompt=a<|endoftext|>", "--prompt_special") == 0
    with pytest.raises(WorldError, match=r"tokenizer\.name"):
        main("--config=uniform_gkl", "--workdir=other", *words)


def special_prompt(run, text: str):
    from dfm_jax.evaluation.prompts import parse_prompt

    return parse_prompt(text, run.tokenizer, run.config.model.length, special=True)
