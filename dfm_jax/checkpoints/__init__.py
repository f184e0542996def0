"""Weights in and out of files. This room knows models, not training.

Ours (one folder a step, written by a run):
    store           the checkpoints of a run: looked up, restored, one array read alone, old ones dropped
    saving          one save in the background, from the arrays' copy to the folder's plain name
    checksums       size and SHA-256 of every file of a checkpoint
    tree_names      flat names for the leaves of a pytree, and what differs between two sets of them
Other programs':
    layouts         the table of formats that can be imported and exported, a line each
    safetensors_file, pytorch/
"""
