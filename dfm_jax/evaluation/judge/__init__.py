"""Generated text under another model, the judge: how likely it is, and how close to real text.

gpt2         GPT-2 in Flax, from a folder or the hub
perplexity   the figures of a set of samples
mauve        how close a set of samples is to real text
"""
