"""Generative perplexity: how likely another model, the judge, finds the samples.

gpt2         GPT-2 in Flax, from a folder or the hub
perplexity   the figures that it gives
"""
