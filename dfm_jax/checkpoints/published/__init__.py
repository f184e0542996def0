"""The weights that the field publishes: folders with `config.json` and tensors, as repositories of the hub are.

layouts    the table: whose weights, what their numbers mean, a line each
names      their tensors <-> the reference's, which `checkpoints.pytorch` reads
folder     config.json and the tensors of a folder: safetensors, in shards too, or pytorch_model.bin
reading    a folder to weights and to the fields of a config
writing    a run's weights in the layout of MDLM
hub        folders of the Hugging Face hub, in and out
"""

from dfm_jax.checkpoints.published.layouts import LAYOUTS, OURS
from dfm_jax.checkpoints.published.reading import Published, read

__all__ = ["LAYOUTS", "OURS", "Published", "read"]
