"""Reads and writes files of weights. It depends on models, not on training.

Our own format, one folder per step of a run:
    store           the checkpoints of a run: find, restore, read one array, delete old ones
    saving          one save in the background
    checksums       the size and SHA-256 of every file of a checkpoint
    tree_names      flat names for the leaves of a pytree, and the differences between two sets of them
Formats of other programs:
    layouts         the table of formats to import and export, an entry each
    safetensors_file, pytorch/
"""
