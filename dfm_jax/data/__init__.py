"""Text to documents to tokens to shards to batches."""

from dfm_jax.data.folders import is_complete
from dfm_jax.data.loader import Batch, eval_batches, train_batches
from dfm_jax.data.manifest import Manifest
from dfm_jax.data.prepare import missing_units, prepare, summary
from dfm_jax.data.progress import Printer, Progress
from dfm_jax.data.shards import TokenStream
from dfm_jax.data.tokenizers import Tokenizer, get_tokenizer, vocabulary_size
from dfm_jax.data.tokenizers.special import marked
from dfm_jax.data.views.folder import open_stream, verify
from dfm_jax.data.views.mixture import Mixture
from dfm_jax.data.views.records import RecordStream

__all__ = [
    "Batch",
    "Manifest",
    "Mixture",
    "Printer",
    "Progress",
    "RecordStream",
    "TokenStream",
    "Tokenizer",
    "eval_batches",
    "get_tokenizer",
    "is_complete",
    "marked",
    "missing_units",
    "open_stream",
    "prepare",
    "summary",
    "train_batches",
    "verify",
    "vocabulary_size",
]
