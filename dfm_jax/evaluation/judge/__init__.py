"""Generative perplexity: how likely the samples are under another model, the judge.

gpt2         GPT-2 in Flax, from a folder or the hub
perplexity   the figures of a set of samples
"""
