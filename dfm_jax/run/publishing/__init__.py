"""Weights of other projects made runs of ours, and runs of ours made folders that others can load.

importing   a published folder, a name on the hub or a checkpoint file, to a run
exporting   a run's checkpoint to a file or folder; card is the README of the folder
convert     what both do with the weights of the reference: a checkpoint file as a run, a run as a checkpoint file
loading     such a folder, or its name on the hub, as a run
tokens      the tokenizer that goes with a published vocabulary, and where its mask is
"""
